"""What a disk shows and what the register says of it, in words for a person. Pure; changes nothing."""

from collections.abc import Callable, Iterator
from typing import assert_never

from csi.core.errors import SealedLocalError
from csi.core.size import human
from csi.guest import decide as plan
from csi.guest.decide import Decision, DiskView, Format, HeaderCopy, Open
from csi.guest.seal.state_record import RecordKind, Slot, SlotState, StateRecord
from csi.kbs.register import Announcement, VolumeRecord

_SHOWN_OF_A_NONCE = 12


def described(record: VolumeRecord, disk: DiskView) -> Iterator[str]:
    """The lines of `inspect`."""
    yield f"register: volume {record.volume_id} is {record.state}, profile {record.profile}, revision {record.revision}"
    yield f"register: head {_announced(record.head)}, {record.announced} announced in all"
    for candidate in record.candidates:
        yield f"register: announced since and not committed: {_announced(candidate)}"
    for entry in record.accepted:
        yield f"register: a person made {_announced(entry.now)} the head: {entry.reason}"
    if record.unwritten:
        yield "register: that head is of a disk whose records could not be read: `repair` writes it"
    yield f"disk: {human(disk.device_bytes)}"
    for number, slot in enumerate(disk.slots):
        yield f"disk: record {number}: {slot_in_words(slot, lambda shown: _known(record, shown))}"
    if record.header_sha256 is not None:
        for copy in HeaderCopy:
            right = disk.header(copy).hex() == record.header_sha256
            yield f"disk: header copy {copy.value} is {'the one' if right else 'NOT the one'} that the register holds"
    yield f"an open for writing: {_outcome(record, disk)}"


def _known(record: VolumeRecord, shown: StateRecord) -> str:
    return "the register knows it" if record.knows(shown.announcement) else "the register does NOT know it"


def _announced(announcement: Announcement | None) -> str:
    if announcement is None:
        return "none"
    nonce = announcement.nonce[:_SHOWN_OF_A_NONCE]
    return f"generation {announcement.generation} ({nonce}…, epoch {announcement.epoch[:_SHOWN_OF_A_NONCE]}…)"


def slot_in_words(slot: Slot, known: Callable[[StateRecord], str]) -> str:
    """What a record's place shows; `known` says who knows of such an open."""
    match slot:
        case SlotState.ABSENT:
            return "blank"
        case SlotState.INVALID:
            return "does not verify: torn, changed, or another volume's"
        case StateRecord(kind=RecordKind.INTENT):
            return "a format of this volume has begun"
        case StateRecord():
            return f"{_announced(slot.announcement)}, {known(slot)}; {slot.state}"
        case _:
            assert_never(slot)


def _outcome(record: VolumeRecord, disk: DiskView) -> str:
    return outcome_in_words(lambda: plan.decide(record, disk, may_format=True))


def outcome_in_words(decide: Callable[[], Decision]) -> str:
    """What an open would do, or why it would refuse."""
    try:
        decision = decide()
    except SealedLocalError as error:
        return f"refused: {error}"
    match decision:
        case Format():
            return "would format it, if the policy allows that"
        case Open(mend=None):
            return f"would open it by header copy {decision.copy.value}"
        case Open():
            return f"would open it by header copy {decision.copy.value} and write the other one anew"
        case _:
            assert_never(decision)
