"""Steps of an unlocking that are the same whoever says what the newest state is: a register, or the disk alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from csi.core.errors import InUse, SealedLocalError
from csi.core.header_digest import header_digest
from csi.core.sealed import HEADER_A_OFFSET, HEADER_B_OFFSET, HEADER_BYTES, header_of
from csi.core.secret import Secret
from csi.guest.close import close
from csi.guest.decide import DiskView, HeaderCopy, Open
from csi.guest.seal import dm_table, luks_header, state_record
from csi.guest.seal.head import Head
from csi.guest.seal.mapping import Mapping
from csi.guest.seal.state_record import StateRecord
from csi.guest.session import DeviceSession
from csi.kbs.register import Announcement


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A volume that was formatted and not mounted yet: its header, its mapping, and the first record of the disk."""

    header: bytes
    mapping: Mapping
    first: StateRecord


def make(
    session: DeviceSession, head: Head, announced: Announcement, *, share: Secret, key_version: int, payload_bytes: int
) -> Made:
    """Format the device: intent record, header in memory, mapped, filesystem, flushed, copy B, copy A, first record.

    The caller has decided that nothing of value is there.
    """
    profile, keys = session.rule.profile, session.keys
    intent = state_record.intent(profile, key_version, payload_bytes)
    session.write_record(head, intent)
    session.progress("formatting, once and for all")
    header = session.machine.make_header(
        profile,
        device=session.device,
        passphrase=keys.passphrase,
        volume_key=session.new_volume_key(share, key_version),
        luks_uuid=keys.luks_uuid,
    )
    # A cryptsetup that writes anything else would make a volume that no later open accepts.
    luks_header.check(header, profile, uuid=keys.luks_uuid)
    mapping = session.map(head, header, payload_bytes)
    session.machine.make_filesystem(mapping.path, session.rule.fstype)
    session.machine.flush(mapping.path)
    session.write(head, HEADER_B_OFFSET, header_of(header))
    session.write(head, HEADER_A_OFFSET, header_of(header))
    digest = header_digest(header)
    first = state_record.opened(intent, digest, state_record.header_mac(digest, HEADER_BYTES, keys), announced)
    session.write_record(head, first)
    return Made(header=header, mapping=mapping, first=first)


def mounted_mapping(session: DeviceSession, payload_bytes: Callable[[], int]) -> Mapping | None:
    """A mapping that an earlier call made: the same volume, mounted rightly, is the answer; not mounted, it is closed.

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
        payload_bytes=payload_bytes(),
        device=machine.number_of(session.device),
    )
    dm_table.require(mapping.table, wanted)
    here = places.get(session.mount_point)
    if here is None:
        raise InUse(f"volume {session.volume_id} is mounted at {', '.join(places)}; close it first")
    if here.read_only is not session.read_only:
        now = "writable" if session.read_only else "read-only"
        raise InUse(f"volume {session.volume_id} is mounted {now}, and the policy says otherwise; close it first")
    return mapping


def require_free_mount_point(session: DeviceSession) -> None:
    """A mount over another would hide that one's files, and closing either would unmount both."""
    mount_point = session.mount_point
    for mount in session.machine.mounts():
        if mount.target == mount_point:
            raise InUse(
                f"{session.rule.mount} is a mount of {mount.source} already; close that one, or give volume "
                f"{session.volume_id} another mount point in the policy"
            )


def mapped(session: DeviceSession, head: Head, decision: Open) -> Mapping:
    """The volume behind dm-crypt, all of it authenticated before a parser or the kernel sees it."""
    header, found = copy_of(head, decision.copy), decision.found
    # The plan has found this copy's digest equal to the record's, so the MAC of that digest authenticates the copy.
    state_record.require_header(found, found.header_sha256, HEADER_BYTES, session.keys)
    luks_header.check(header, session.rule.profile, uuid=session.keys.luks_uuid)
    mapping = session.map(head, header, found.payload_bytes)
    session.progress("the header is authentic and the kernel's mapping is the expected one")
    return mapping


def settle(session: DeviceSession, head: Head, decision: Open) -> None:
    """What comes before the next record: a damaged header copy is mended, and the device flushed."""
    if decision.mend is not None:
        session.write(head, offset_of(decision.mend), header_of(copy_of(head, decision.copy)))
        session.progress(f"header copy {decision.mend.value} was damaged and is written anew")
    # What was found may be the write of a guest that was killed before its flush: torn together with the next record it
    # would leave none.
    session.machine.flush(session.device)


def view(session: DeviceSession, head: Head) -> DiskView:
    """What the head shows, authenticated by this volume's keys."""
    first, second = (state_record.decode(slot, session.keys, session.volume_id) for slot in head.slots)
    return DiskView(
        device_bytes=head.device_bytes,
        slots=(first, second),
        zero_but_slots=head.zero_but_slots,
        header=lambda copy: header_digest(copy_of(head, copy)),
        copies_equal=lambda: head.header_a == head.header_b,
    )


def copy_of(head: Head, copy: HeaderCopy) -> bytes:
    """The parts of a header copy."""
    match copy:
        case HeaderCopy.A:
            return head.header_a
        case HeaderCopy.B:
            return head.header_b
        case _:
            assert_never(copy)


def offset_of(copy: HeaderCopy) -> int:
    """Where a header copy lies."""
    match copy:
        case HeaderCopy.A:
            return HEADER_A_OFFSET
        case HeaderCopy.B:
            return HEADER_B_OFFSET
        case _:
            assert_never(copy)


def close_quietly(session: DeviceSession) -> None:
    """After a failure nothing stays mounted or mapped; the failure itself is what is told."""
    try:
        close(session.machine, session.volume_id)
    except SealedLocalError as error:
        session.progress(f"the mapping {session.name} could not be closed: {error}")
