"""The core: (released key, device, policy rule) to a mounted filesystem, or one clear error. Never repairs by formatting.

Order of a format: permission (register) → intent record → header made in memory → mapped → live check → filesystem →
flushed → copy B, copy A, state record → committed (register) → then as in an open. Order of a read-write open: header
checked → mapped → live check → next generation announced (register) → written → checked and mounted → committed. Killed
anywhere and repeated, both end the same; only what the register has committed counts.
"""

from typing import assert_never

from csi.core.errors import InUse, Refused, RolledBack, SealedLocalError
from csi.core.header_digest import header_digest
from csi.core.sealed import HEADER_A_OFFSET, HEADER_B_OFFSET, HEADER_BYTES, header_of
from csi.guest import decide as plan
from csi.guest.close import close
from csi.guest.decide import DiskView, Format, HeaderCopy, Open, Repair
from csi.guest.opened import Opened
from csi.guest.seal import dm_table, luks_header, state_record
from csi.guest.seal.head import Head
from csi.guest.seal.keys import VolumeKeys
from csi.guest.seal.mapping import Mapping
from csi.guest.session import Session, new_nonce
from csi.kbs.register import VolumeRecord


def unlock(session: Session, record: VolumeRecord) -> Opened:
    """Open the volume and mount it; a volume that is mounted already, and rightly, is success.

    `record` is what the register said when it released the key.
    """
    mounted = _mounted_already(session, record)
    if mounted is not None:
        return mounted
    _require_free_mount_point(session)
    head = session.machine.read_head(session.device)
    view = _view(head, session.keys, session.volume_id)
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
        _close_quietly(session)
        raise


def look(session: Session) -> DiskView:
    """What the device shows, authenticated by this volume's keys. Raises `InUse` for a device that is mapped."""
    return _view(session.machine.read_head(session.device), session.keys, session.volume_id)


def map_only(session: Session, record: VolumeRecord) -> Mapping:
    """Map a formatted volume after all checks of an open, for a tool that repairs its filesystem. Nothing is announced:
    what the tool writes belongs to the head that is there. Raises `Refused` for a volume that would be formatted.
    """
    if session.machine.mapping(session.name) is not None:
        raise InUse(f"volume {session.volume_id} is open already; close it first")
    head = session.machine.read_head(session.device)
    decision = plan.decide(record, _view(head, session.keys, session.volume_id), may_format=False)
    if not isinstance(decision, Open):
        raise Refused(f"volume {session.volume_id} was never formatted; there is nothing to repair")
    try:
        return _mapped(session, head, decision)
    except BaseException:
        _close_quietly(session)
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
    decision = plan.repair(record, _view(head, session.keys, session.volume_id))
    if not decision.needed:
        return False
    header = _committed_header(session, record, head, decision)
    # Copy B first, as everywhere: at each moment that is whole of which something is whole now.
    for copy in reversed(decision.copies):
        session.write(head, _offset(copy), header_of(header))
        session.progress(f"header copy {copy.value} is written anew")
    if decision.sequence is not None:
        _write_lost_record(session, record, head, header, decision.sequence)
    return True


def _committed_header(session: Session, record: VolumeRecord, head: Head, decision: Repair) -> bytes:
    """The header that the register's digest is of: a copy of the disk, else the broker's."""
    whole = [copy for copy in HeaderCopy if copy not in decision.copies]
    header = _copy(head, whole[0]) if whole else session.register.header(record)
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
    """A mapping that an earlier call made: the same volume, mounted, is success; not mounted, it is closed.

    A mapping of another device or with another table under this name is never used.
    """
    machine = session.machine
    mapping = machine.mapping(session.name)
    if mapping is None:
        return None
    places = {mount.target: mount for mount in machine.mounts() if mount.device == mapping.device}
    if not places:
        machine.unmap_volume(session.name)
        return None
    wanted = dm_table.expected(
        session.rule.profile,
        uuid=session.keys.luks_uuid,
        payload_bytes=record.payload_bytes or 0,
        device=machine.number_of(session.device),
    )
    dm_table.require(mapping.table, wanted)
    here = places.get(session.mount_point)
    if here is None:
        raise InUse(f"volume {session.volume_id} is mounted at {', '.join(places)}; close it first")
    if here.read_only is not session.read_only:
        now = "writable" if session.read_only else "read-only"
        raise InUse(f"volume {session.volume_id} is mounted {now}, and the policy says otherwise; close it first")
    if not session.read_only:
        record = _still_ours(session, record)
    return session.opened(record, mapping, formatted_now=False, mounted_now=False)


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


def _require_free_mount_point(session: Session) -> None:
    """A mount over another would hide that one's files, and closing either would unmount both."""
    mount_point = session.mount_point
    for mount in session.machine.mounts():
        if mount.target == mount_point:
            raise InUse(
                f"{session.rule.mount} is a mount of {mount.source} already; close that one, or give volume "
                f"{session.volume_id} another mount point in the policy"
            )


def _format(session: Session, record: VolumeRecord, head: Head, decision: Format) -> Opened:
    nonce = new_nonce()
    payload = decision.payload_bytes
    record, share = session.register.begin_format(record, nonce=nonce, payload_bytes=payload)
    grant = session.granted(record, nonce)
    intent = state_record.intent(record.profile, record.key_version, payload)
    session.write_record(head, intent)
    session.progress("formatting, once and for all")
    keys = session.keys
    header = session.machine.make_header(
        session.rule.profile,
        device=session.device,
        passphrase=keys.passphrase,
        volume_key=session.new_volume_key(share, record.key_version),
        luks_uuid=keys.luks_uuid,
    )
    # A cryptsetup that writes anything else would make a volume that no later open accepts.
    luks_header.check(header, session.rule.profile, uuid=keys.luks_uuid)
    mapping = session.map(head, header, payload)
    session.machine.make_filesystem(mapping.path, session.rule.fstype)
    session.machine.flush(mapping.path)
    session.write(head, HEADER_B_OFFSET, header_of(header))
    session.write(head, HEADER_A_OFFSET, header_of(header))
    digest = header_digest(header)
    mac = state_record.header_mac(digest, HEADER_BYTES, keys)
    first = state_record.opened(intent, digest, mac, grant)
    session.write_record(head, first)
    record = session.register.commit_format(record, nonce=nonce, header=header, payload_bytes=payload)
    session.progress("formatted and committed to the register")
    # Mounted is generation 2 at the earliest, so a disk that shows generation 1 never held anybody's data: where the
    # register, restored from a backup, permits the format once more, the disk still forbids it.
    record = session.announce(head, record, first)
    session.mount(mapping, formatted_now=True)
    record = session.commit(record)
    return session.opened(record, mapping, formatted_now=True, mounted_now=True)


def _open(session: Session, record: VolumeRecord, head: Head, decision: Open) -> Opened:
    header, found = _copy(head, decision.copy), decision.found
    mapping = _mapped(session, head, decision)
    if not session.read_only:
        if decision.mend is not None:
            session.write(head, _offset(decision.mend), header_of(header))
            session.progress(f"header copy {decision.mend.value} was damaged and is written anew")
        # What was found may be the write of a guest that was killed before its flush: torn together with the next record
        # it would leave none.
        session.machine.flush(session.device)
        record = session.announce(head, record, found)
    session.mount(mapping, formatted_now=False)
    if not session.read_only:
        record = session.commit(record)
    return session.opened(record, mapping, formatted_now=False, mounted_now=True)


def _mapped(session: Session, head: Head, decision: Open) -> Mapping:
    """The volume behind dm-crypt, all of it authenticated before a parser or the kernel sees it."""
    header, found = _copy(head, decision.copy), decision.found
    # The plan has found this copy's digest equal to the record's, so the MAC of that digest authenticates the copy.
    state_record.require_header(found, found.header_sha256, HEADER_BYTES, session.keys)
    luks_header.check(header, session.rule.profile, uuid=session.keys.luks_uuid)
    mapping = session.map(head, header, found.payload_bytes)
    session.progress("the header is authentic and the kernel's mapping is the expected one")
    return mapping


def _view(head: Head, keys: VolumeKeys, volume_id: str) -> DiskView:
    first, second = (state_record.decode(slot, keys, volume_id) for slot in head.slots)
    return DiskView(
        device_bytes=head.device_bytes,
        slots=(first, second),
        zero_but_slots=head.zero_but_slots,
        header=lambda copy: header_digest(_copy(head, copy)),
        copies_equal=lambda: head.header_a == head.header_b,
    )


def _copy(head: Head, copy: HeaderCopy) -> bytes:
    match copy:
        case HeaderCopy.A:
            return head.header_a
        case HeaderCopy.B:
            return head.header_b
        case _:
            assert_never(copy)


def _offset(copy: HeaderCopy) -> int:
    match copy:
        case HeaderCopy.A:
            return HEADER_A_OFFSET
        case HeaderCopy.B:
            return HEADER_B_OFFSET
        case _:
            assert_never(copy)


def _close_quietly(session: Session) -> None:
    """After a failure nothing stays mounted or mapped; the failure itself is what is told."""
    try:
        close(session.machine, session.volume_id)
    except SealedLocalError as error:
        session.progress(f"the mapping {session.name} could not be closed: {error}")
