"""The core: (released key, device, policy rule) to a mounted filesystem, or one clear error. Never repairs by formatting.

Order of a format: permission (register) → intent record → header made in memory → mapped → live check → filesystem →
flushed → copy B, copy A, state record → committed (register) → then as in an open. Order of a read-write open: header
checked → mapped → live check → next generation announced (register) → written → checked and mounted → committed. Killed
anywhere and repeated, both end the same; only what the register has committed counts.
"""

from typing import assert_never

from csi.core.errors import InUse, Refused, RolledBack
from csi.core.header_digest import header_digest
from csi.core.sealed import HEADER_BYTES, header_of
from csi.guest import decide as plan
from csi.guest import steps
from csi.guest.decide import DiskView, Format, HeaderCopy, Open, Repair
from csi.guest.opened import Opened
from csi.guest.seal import luks_header, state_record
from csi.guest.seal.head import Head
from csi.guest.seal.mapping import Mapping
from csi.guest.session import DeviceSession, Session, new_nonce
from csi.kbs.register import VolumeRecord


def unlock(session: Session, record: VolumeRecord) -> Opened:
    """Open the volume and mount it; a volume that is mounted already, and rightly, is success.

    `record` is what the register said when it released the key.
    """
    mounted = _mounted_already(session, record)
    if mounted is not None:
        return mounted
    steps.require_free_mount_point(session)
    head = session.machine.read_head(session.device)
    view = steps.view(session, head)
    decision = plan.decide(record, view, may_format=session.may_format)
    try:
        match decision:
            case Format():
                return _format(session, record, head, decision)
            case Open():
                return _open(session, record, head, decision)
            case _:
                assert_never(decision)
    except BaseException:
        steps.close_quietly(session)
        raise


def look(session: DeviceSession) -> DiskView:
    """What the device shows, authenticated by this volume's keys. Raises `InUse` for a device that is mapped."""
    return steps.view(session, session.machine.read_head(session.device))


def map_only(session: Session, record: VolumeRecord) -> Mapping:
    """Map a formatted volume after all checks of an open, for a tool that repairs its filesystem. Nothing is announced:
    what the tool writes belongs to the head that is there. Raises `Refused` for a volume that would be formatted.
    """
    if session.machine.mapping(session.name) is not None:
        raise InUse(f"volume {session.volume_id} is open already; close it first")
    head = session.machine.read_head(session.device)
    decision = plan.decide(record, steps.view(session, head), may_format=False)
    if not isinstance(decision, Open):
        raise Refused(f"volume {session.volume_id} was never formatted; there is nothing to repair")
    try:
        return steps.mapped(session, head, decision)
    except BaseException:
        steps.close_quietly(session)
        raise


def repair(session: Session, record: VolumeRecord) -> bool:
    """Write anew what of the head is lost, and say what; returns whether there was anything. The register isn't changed.

    Raises `Refused` or an `Untrusted` for a disk that needs a person's word at the broker first.
    """
    if session.machine.mapping(session.name) is not None:
        raise InUse(f"volume {session.volume_id} is open; close it first")
    if session.read_only:
        raise Refused(f"the policy lets this guest read volume {session.volume_id} only; a repair writes")
    head = session.machine.read_head(session.device)
    decision = plan.repair(record, steps.view(session, head))
    if not decision.needed:
        return False
    header = _committed_header(session, record, head, decision)
    # Copy B first, as everywhere: at each moment that is whole of which something is whole now.
    for copy in reversed(decision.copies):
        session.write(head, steps.offset_of(copy), header_of(header))
        session.progress(f"header copy {copy.value} is written anew")
    if decision.sequence is not None:
        _write_lost_record(session, record, head, header, decision.sequence)
    return True


def _committed_header(session: Session, record: VolumeRecord, head: Head, decision: Repair) -> bytes:
    """The header that the register's digest is of: a copy of the disk, else the broker's."""
    whole = [copy for copy in HeaderCopy if copy not in decision.copies]
    header = steps.copy_of(head, whole[0]) if whole else session.register.header(record)
    if header_digest(header).hex() != record.header_sha256:
        raise Refused(f"the broker has no copy of the header of volume {session.volume_id} as it is now")
    luks_header.check(header, session.rule.profile, uuid=session.keys.luks_uuid)
    return header


def _write_lost_record(session: Session, record: VolumeRecord, head: Head, header: bytes, sequence: int) -> None:
    digest = header_digest(header)
    mac = state_record.header_mac(digest, HEADER_BYTES, session.keys)
    if record.head is None or record.payload_bytes is None:
        raise Refused(f"volume {session.volume_id} was never committed; there is nothing to repair")
    begun = state_record.intent(record.profile, record.key_version, record.payload_bytes)
    session.write_record(head, state_record.rebuilt(begun, digest, mac, record.head, sequence=sequence))
    session.progress(f"the state record is written anew, under generation {record.head.generation}")


def _mounted_already(session: Session, record: VolumeRecord) -> Opened | None:
    mapping = steps.mounted_mapping(session, lambda: record.payload_bytes or 0)
    if mapping is None:
        return None
    if not session.read_only:
        record = _still_ours(session, record)
    return session.opened(record.generation, mapping, formatted_now=False, mounted_now=False)


def _still_ours(session: Session, record: VolumeRecord) -> VolumeRecord:
    """What is mounted for writing must be what the register has as the newest. A guest that died between its mount and its
    commit left an announcement that is committed now.
    """
    found = session.newest_on_disk()
    if found is not None and found.announcement == record.head and not record.candidates:
        return record
    if found is not None and record.candidates[-1:] == (found.announcement,):
        return session.commit(record)
    raise RolledBack(
        f"volume {session.volume_id} is mounted, and another guest has opened it since: what is written here is lost. Save "
        "what is needed elsewhere, close the volume, then open it again"
    )


def _format(session: Session, record: VolumeRecord, head: Head, decision: Format) -> Opened:
    nonce = new_nonce()
    payload = decision.payload_bytes
    record, share = session.register.begin_format(record, nonce=nonce, payload_bytes=payload)
    grant = session.granted(record, nonce)
    made = steps.make(session, head, grant, share=share, key_version=record.key_version, payload_bytes=payload)
    record = session.register.commit_format(record, nonce=nonce, header=made.header, payload_bytes=payload)
    session.progress("formatted and committed to the register")
    # Mounted is generation 2 at the earliest, so a disk that shows generation 1 never held anybody's data: where the
    # register, restored from a backup, permits the format once more, the disk still forbids it.
    record = session.announce(head, record, made.first)
    session.mount(made.mapping, formatted_now=True)
    record = session.commit(record)
    return session.opened(record.generation, made.mapping, formatted_now=True, mounted_now=True)


def _open(session: Session, record: VolumeRecord, head: Head, decision: Open) -> Opened:
    mapping = steps.mapped(session, head, decision)
    if not session.read_only:
        steps.settle(session, head, decision)
        record = session.announce(head, record, decision.found)
    session.mount(mapping, formatted_now=False)
    if not session.read_only:
        record = session.commit(record)
    return session.opened(record.generation, mapping, formatted_now=False, mounted_now=True)
