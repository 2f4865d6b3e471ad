"""What to do with a device that claims to be a volume: format it, open it, or refuse. Pure; decides, touches nothing.

The register decides whether a format may happen; the disk can only veto it. In `active` nothing on the disk, and no error,
ever leads to a format.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from csi.core.errors import Blanked, ForeignContent, Refused, RolledBack, Tampered
from csi.core.sealed import PAYLOAD_OFFSET, Profile, usable_bytes
from csi.core.size import human
from csi.guest.seal.state_record import RecordKind, Slot, SlotState, StateRecord
from csi.kbs.register import VolumeRecord, VolumeState


class HeaderCopy(Enum):
    """Which of the two header copies is meant."""

    A = "A"
    B = "B"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskView:
    """What one reading of the device showed. `zero_but_slots` ignores the two record slots; `header` hashes a copy,
    `copies_equal` compares the two, which is cheaper than a second hash.
    """

    device_bytes: int
    slots: tuple[Slot, Slot]
    zero_but_slots: bool
    header: Callable[[HeaderCopy], bytes]
    copies_equal: Callable[[], bool]

    @property
    def blank(self) -> bool:
        """Nothing but zeroes where a volume has its records, headers and ends."""
        return self.zero_but_slots and self.slots == (SlotState.ABSENT, SlotState.ABSENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Format the device under the register's permission."""

    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Open the volume by this header copy; `found` is the record that authenticates it. `mend` is the other copy, where a
    power cut or the host has damaged it: a writable open writes it anew from the authentic one.
    """

    copy: HeaderCopy
    found: StateRecord
    mend: HeaderCopy | None = None


Decision = Format | Open
"""What may be done with a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What is written anew: a state record of this sequence under the register's head, and these header copies, from the
    other one or, when both are lost, from the broker's. Nothing of both: the head is whole.
    """

    sequence: int | None
    copies: tuple[HeaderCopy, ...]

    @property
    def needed(self) -> bool:
        """Whether there is anything to repair."""
        return self.sequence is not None or bool(self.copies)


def repair(record: VolumeRecord, disk: DiskView) -> Repair:
    """What of the head has to be written anew. A header is known by the register's digest, so needs nobody's word. A state
    record that is written anew makes the disk the volume's, so a person has to have said so at the broker.
    """
    if record.state is not VolumeState.ACTIVE or record.header_sha256 is None or record.payload_bytes is None:
        raise Refused(f"volume {record.volume_id} is {record.state} at the broker; there is nothing to repair")
    opened = opened_slots(disk)
    if record.unwritten and not any(record.knows(slot.announcement) for slot in opened):
        require_device_size(record.profile, record.payload_bytes, disk)
        sequence = 1 + max((slot.sequence for slot in opened), default=0)
    else:
        _found(record, disk)
        sequence = None
    copies = tuple(copy for copy in HeaderCopy if disk.header(copy).hex() != record.header_sha256)
    return Repair(sequence=sequence, copies=copies)


def decide(record: VolumeRecord, disk: DiskView, *, may_format: bool) -> Decision:
    """The one thing that may be done. `may_format` is what the measured policy and the access mode say."""
    if record.state is VolumeState.ACTIVE:
        return _open(record, disk)
    if record.state not in (VolumeState.ALLOCATED, VolumeState.FORMATTING):
        raise Refused(f"volume {record.volume_id} is {record.state} at the broker; it can't be opened")
    if not may_format:
        raise Refused(
            f"volume {record.volume_id} was never formatted, and this guest's policy or access mode does not allow to do it"
        )
    _require_ours_to_format(record, disk)
    return format_of(record.profile, disk)


def format_of(profile: Profile, disk: DiskView) -> Format:
    """The format of the whole device. Raises `Refused` for one without room for a payload."""
    payload = usable_bytes(disk.device_bytes, profile)
    if payload <= 0:
        raise Refused(
            f"the device has {human(disk.device_bytes)}; a sealed volume needs more than {human(PAYLOAD_OFFSET)}"
        )
    return Format(payload_bytes=payload)


def _require_ours_to_format(record: VolumeRecord, disk: DiskView) -> None:
    """A device is ours to format when it is blank, or shows by MAC that a permitted format of this volume had begun."""
    if disk.blank:
        return
    ours = [slot for slot in disk.slots if isinstance(slot, StateRecord)]
    formatted = [slot for slot in ours if slot.kind is RecordKind.OPEN]
    # Generation 1 is what a guest leaves that died before it mounted: a volume is mounted at generation 2 at the earliest.
    newest = max(formatted, key=lambda slot: slot.sequence, default=None)
    if newest is not None and any(slot.generation > 1 for slot in formatted):
        raise Refused(
            f"the device holds volume {record.volume_id} formatted, and the register says that it never was. Was the "
            "broker's database restored from a backup? Restore a newer one; nothing was changed. "
            f"{_way_out(record, newest)}"
        )
    # A torn record on a disk that is blank otherwise is nobody's data.
    if not ours and not disk.zero_but_slots:
        raise ForeignContent(
            f"the device is not blank and nothing on it belongs to volume {record.volume_id}; it is not formatted. "
            "If it is the right device and its content is useless, delete the volume and make a new one."
        )


def _found(record: VolumeRecord, disk: DiskView) -> StateRecord:
    """The disk's newest record, which the register knows and which says what the register says."""
    found = _newest(record, disk)
    if not record.knows(found.announcement):
        way_out = _rebuild(record) if record.unwritten else _way_out(record, found)
        raise RolledBack(f"{_unknown(record, found)} Nothing was changed. {way_out}")
    _require_size(record, found, disk)
    if record.header_sha256 != found.header_sha256.hex():
        raise RolledBack(f"volume {record.volume_id} shows another header than the one that the register holds")
    return found


def _open(record: VolumeRecord, disk: DiskView) -> Open:
    decision = by_a_copy(_found(record, disk), disk)
    if decision is not None:
        return decision
    raise Tampered(
        f"neither header copy of volume {record.volume_id} is the authenticated one; it is not opened. If this is its "
        f"disk, the broker's copy can be written to it: sealed-local guest repair --volume {record.volume_id}"
    )


def by_a_copy(found: StateRecord, disk: DiskView) -> Open | None:
    """How to open by the header copy that the record names; None when neither is the one."""
    if disk.header(HeaderCopy.A) == found.header_sha256:
        mend = None if disk.copies_equal() else HeaderCopy.B
        return Open(copy=HeaderCopy.A, found=found, mend=mend)
    if disk.header(HeaderCopy.B) == found.header_sha256:
        return Open(copy=HeaderCopy.B, found=found, mend=HeaderCopy.A)
    return None


def _unknown(record: VolumeRecord, found: StateRecord) -> str:
    """Why the register doesn't know the newest record on the disk."""
    shown = f"the device shows generation {found.generation} of volume {record.volume_id}"
    if record.unwritten:
        return f"{shown}, and a person has accepted a disk of which no record can be read."
    if found.generation < record.generation:
        return f"{shown}, and {record.generation} is committed: this is an older state of it."
    if found.generation > record.announced:
        return (
            f"{shown}, which the register never announced (it knows {record.announced}): the broker's database is older "
            "than the device."
        )
    return (
        f"{shown} by another open than the one of that number that the register knows: a branch that was abandoned, by a "
        "restore of the broker's database or by a person's word."
    )


def _way_out(record: VolumeRecord, found: StateRecord) -> str:
    return (
        "If this is the newest disk there is, the broker's operator can make its state the volume's: "
        f"sealed-local broker volume accept {record.volume_id} --found {found.state} --reason TEXT"
    )


def _rebuild(record: VolumeRecord) -> str:
    """The way out where no state record can be read."""
    repaired = f"sealed-local guest repair --volume {record.volume_id}"
    if record.unwritten:
        return f"A person has accepted this disk at the broker. Now write its record: {repaired}"
    return (
        "If this is the newest disk there is, the broker's operator can accept it without one: sealed-local broker volume "
        f"accept {record.volume_id} --unread --reason TEXT; then write one: {repaired}"
    )


def opened_slots(disk: DiskView) -> list[StateRecord]:
    """The verified records of opens."""
    return [slot for slot in disk.slots if isinstance(slot, StateRecord) and slot.kind is RecordKind.OPEN]


def _newest(record: VolumeRecord, disk: DiskView) -> StateRecord:
    """The newest verified record. One invalid slot beside a valid one is what a power cut in a record write leaves."""
    mine = [
        slot for slot in opened_slots(disk) if (slot.profile, slot.key_version) == (record.profile, record.key_version)
    ]
    if mine:
        return max(mine, key=lambda slot: slot.sequence)
    if disk.blank:
        raise Blanked(
            f"volume {record.volume_id} is formatted at generation {record.generation}, and the device is blank. It is not "
            "formatted again. Look for the right device; if the data is lost, make a new volume."
        )
    raise Tampered(
        f"the device shows no state record of volume {record.volume_id} that verifies: it was changed, or it is another "
        f"volume's device. Nothing was changed. {_rebuild(record)}"
    )


def _require_size(record: VolumeRecord, found: StateRecord, disk: DiskView) -> None:
    if found.payload_bytes != record.payload_bytes:
        raise Tampered(f"volume {record.volume_id} shows another payload size than the register holds")
    require_device_size(record.profile, found.payload_bytes, disk)


def require_device_size(profile: Profile, wanted: int, disk: DiskView) -> None:
    """Raises `Tampered` for a device with less room than the volume has, `Refused` for one with more."""
    payload = usable_bytes(disk.device_bytes, profile)
    if payload < wanted:
        raise Tampered(f"the device is too small: {human(payload)} of payload instead of {human(wanted)}")
    if payload > wanted:
        raise Refused(
            f"the device has grown to {human(payload)} of payload from {human(wanted)}; this version can't grow a sealed "
            "volume"
        )
