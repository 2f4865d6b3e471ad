"""The register decides whether a format may happen, the disk can only veto it; an active volume is opened or refused."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi.broker import rules
from csi.core.errors import Blanked, ForeignContent, Refused, RolledBack, SealedLocalError, Tampered
from csi.core.sealed import PAYLOAD_OFFSET, Profile
from csi.core.size import MIB
from csi.guest import decide as unlock
from csi.guest.decide import DiskView, Format, HeaderCopy, Open
from csi.guest.seal.state_record import RecordKind, Slot, SlotState, StateRecord
from csi.kbs import disk_state
from csi.kbs.register import Announcement, FormatGrant, VolumeRecord, VolumeState

PAYLOAD = 64 * MIB
HEADER, OTHER = b"h" * 32, b"o" * 32
EPOCH = "0e" * 16


def announced(generation: int) -> Announcement:
    return Announcement(generation=generation, nonce=bytes([generation]).hex() * 32, epoch=EPOCH)


ABSENT, INVALID = SlotState.ABSENT, SlotState.INVALID
INTENT = StateRecord(kind=RecordKind.INTENT, profile=Profile.XTS, key_version=1, sequence=0, payload_bytes=PAYLOAD)

ALLOCATED = VolumeRecord(volume_id="pvc-1", key_version=1, profile=Profile.XTS, state=VolumeState.ALLOCATED, revision=1)
FORMATTING = replace(
    ALLOCATED,
    state=VolumeState.FORMATTING,
    payload_bytes=PAYLOAD,
    grant=FormatGrant(nonce="n", measurement="m", deadline_unix=1, epoch=EPOCH),
)
ACTIVE = replace(
    ALLOCATED,
    state=VolumeState.ACTIVE,
    payload_bytes=PAYLOAD,
    header_sha256=HEADER.hex(),
    head=announced(3),
    announced=3,
)
OPENING = replace(ACTIVE, candidates=(announced(4), announced(5)), announced=5)
RETIRED = replace(ACTIVE, state=VolumeState.RETIRED)
SHREDDED = replace(ACTIVE, state=VolumeState.SHREDDED)


def formatted(generation: int, **changes: object) -> StateRecord:
    record = replace(INTENT, kind=RecordKind.OPEN, sequence=generation, generation=generation, header_sha256=HEADER)
    named = replace(record, nonce=bytes([generation]) * 32, epoch=bytes.fromhex(EPOCH))
    return replace(named, **changes)  # type: ignore[arg-type]


def view(
    first: Slot, second: Slot, *, a: bytes = HEADER, b: bytes = HEADER, zero: bool = False, payload: int = PAYLOAD
) -> DiskView:
    copies = {HeaderCopy.A: a, HeaderCopy.B: b}
    return DiskView(
        device_bytes=PAYLOAD_OFFSET + payload,
        slots=(first, second),
        zero_but_slots=zero,
        header=copies.__getitem__,
        copies_equal=lambda: a == b,
    )


VIEWS = {
    "blank": view(ABSENT, ABSENT, zero=True),
    "intent": view(INTENT, ABSENT, zero=True),
    "intent beside parts of a format": view(INTENT, ABSENT),
    "intent beside a torn record": view(INTENT, INVALID),
    "torn intent": view(INVALID, ABSENT, zero=True),
    "generation 1 beside the intent": view(INTENT, formatted(1)),
    "generation 1 alone": view(ABSENT, formatted(1)),
    "generation 2 beside generation 1": view(formatted(2), formatted(1)),
    "foreign content": view(INVALID, INVALID),
    "foreign content beside blank records": view(ABSENT, ABSENT),
    "newest": view(formatted(2), formatted(3)),
    "newest in the other slots": view(formatted(3), formatted(2)),
    "torn record beside the newest": view(INVALID, formatted(3)),
    "no record beside the newest": view(ABSENT, formatted(3)),
    "older": view(formatted(2), ABSENT),
    "torn record beside an older one": view(formatted(2), INVALID),
    "generation 4": view(formatted(4), formatted(3)),
    "generation 5": view(formatted(4), formatted(5)),
    "generation 6": view(formatted(6), formatted(5)),
    "generation 3 of another branch": view(formatted(2), formatted(3, nonce=OTHER)),
    "generation 3 of another epoch": view(formatted(2), formatted(3, epoch=bytes(16))),
    "generation 4 of another branch": view(formatted(4, nonce=OTHER), formatted(3)),
    "a higher number below the newest record": view(formatted(9), formatted(3, sequence=10)),
    "another header": view(formatted(2), formatted(3, header_sha256=OTHER), a=OTHER, b=OTHER),
    "copy A damaged": view(formatted(2), formatted(3), a=OTHER),
    "copy B damaged": view(formatted(2), formatted(3), b=OTHER),
    "both copies damaged": view(formatted(2), formatted(3), a=OTHER, b=OTHER),
    "a block too small": view(formatted(2), formatted(3), payload=PAYLOAD - 4096),
    "a block grown": view(formatted(2), formatted(3), payload=PAYLOAD + 4096),
    "grown by less than a block": view(formatted(2), formatted(3), payload=PAYLOAD + 512),
    "another payload recorded": view(formatted(2), formatted(3, payload_bytes=PAYLOAD - 4096)),
    "a record of another key version": view(ABSENT, formatted(3, key_version=2)),
    "a record of another profile": view(ABSENT, formatted(3, profile=Profile.NONE)),
    "a newer record of another key version beside the newest": view(formatted(8, key_version=2), formatted(3)),
}

FORMAT = Format(payload_bytes=PAYLOAD)
Answer = Format | Open | type[SealedLocalError]


ACCEPTED = Open(copy=HeaderCopy.A, found=formatted(3, sequence=10))
"""Which record is the newest on a disk, its own count says: numbers of another branch may be higher."""


def opens(copy: HeaderCopy = HeaderCopy.A, generation: int = 3, mend: HeaderCopy | None = None) -> Open:
    return Open(copy=copy, found=formatted(generation), mend=mend)


# Generation 1 is nobody's data: a volume is mounted at generation 2 at the earliest. From there on, the disk forbids what a
# register that went back would permit.
TABLE: dict[str, tuple[Answer, Answer, Answer, Answer]] = {
    # what the disk shows: in state allocated, in formatting, active at 3, active at 3 with 5 announced
    "blank": (FORMAT, FORMAT, Blanked, Blanked),
    "intent": (FORMAT, FORMAT, Tampered, Tampered),
    "intent beside parts of a format": (FORMAT, FORMAT, Tampered, Tampered),
    "intent beside a torn record": (FORMAT, FORMAT, Tampered, Tampered),
    "torn intent": (FORMAT, FORMAT, Tampered, Tampered),
    "generation 1 beside the intent": (FORMAT, FORMAT, RolledBack, RolledBack),
    "generation 1 alone": (FORMAT, FORMAT, RolledBack, RolledBack),
    "generation 2 beside generation 1": (Refused, Refused, RolledBack, RolledBack),
    "foreign content": (ForeignContent, ForeignContent, Tampered, Tampered),
    "foreign content beside blank records": (ForeignContent, ForeignContent, Tampered, Tampered),
    "newest": (Refused, Refused, opens(), opens()),
    "newest in the other slots": (Refused, Refused, opens(), opens()),
    "torn record beside the newest": (Refused, Refused, opens(), opens()),
    "no record beside the newest": (Refused, Refused, opens(), opens()),
    "older": (Refused, Refused, RolledBack, RolledBack),
    "torn record beside an older one": (Refused, Refused, RolledBack, RolledBack),
    "generation 4": (Refused, Refused, RolledBack, opens(generation=4)),
    "generation 5": (Refused, Refused, RolledBack, opens(generation=5)),
    "generation 6": (Refused, Refused, RolledBack, RolledBack),
    "generation 3 of another branch": (Refused, Refused, RolledBack, RolledBack),
    "generation 3 of another epoch": (Refused, Refused, RolledBack, RolledBack),
    "generation 4 of another branch": (Refused, Refused, RolledBack, RolledBack),
    "a higher number below the newest record": (Refused, Refused, ACCEPTED, ACCEPTED),
    "another header": (Refused, Refused, RolledBack, RolledBack),
    "copy A damaged": (
        Refused,
        Refused,
        opens(HeaderCopy.B, mend=HeaderCopy.A),
        opens(HeaderCopy.B, mend=HeaderCopy.A),
    ),
    "copy B damaged": (Refused, Refused, opens(mend=HeaderCopy.B), opens(mend=HeaderCopy.B)),
    "both copies damaged": (Refused, Refused, Tampered, Tampered),
    "a block too small": (Refused, Refused, Tampered, Tampered),
    "a block grown": (Refused, Refused, Refused, Refused),
    "grown by less than a block": (Refused, Refused, opens(), opens()),
    "another payload recorded": (Refused, Refused, Tampered, Tampered),
    "a record of another key version": (Refused, Refused, Tampered, Tampered),
    "a record of another profile": (Refused, Refused, Tampered, Tampered),
    "a newer record of another key version beside the newest": (Refused, Refused, opens(), opens()),
}


def outcome(record: VolumeRecord, disk: DiskView, *, may_format: bool = True) -> Answer:
    try:
        return unlock.decide(record, disk, may_format=may_format)
    except SealedLocalError as error:
        return type(error)


def test_the_table_has_every_view() -> None:
    assert TABLE.keys() == VIEWS.keys()


@pytest.mark.parametrize("shown", VIEWS)
def test_what_is_done_with_each_view_in_each_state(shown: str) -> None:
    records = (ALLOCATED, FORMATTING, ACTIVE, OPENING)
    assert tuple(outcome(record, VIEWS[shown]) for record in records) == TABLE[shown]


@pytest.mark.parametrize("shown", VIEWS)
def test_nothing_is_formatted_that_the_policy_does_not_allow_and_opening_needs_no_such_permission(shown: str) -> None:
    records = (ALLOCATED, FORMATTING, ACTIVE, OPENING)
    forbidden = tuple(outcome(record, VIEWS[shown], may_format=False) for record in records)
    assert forbidden == (Refused, Refused, *TABLE[shown][2:])


@pytest.mark.parametrize("record", [RETIRED, SHREDDED], ids=lambda record: record.state)
@pytest.mark.parametrize("shown", VIEWS)
def test_a_volume_that_an_operator_stopped_is_neither_opened_nor_formatted(record: VolumeRecord, shown: str) -> None:
    with pytest.raises(Refused, match=f"is {record.state} at the broker"):
        unlock.decide(record, VIEWS[shown], may_format=True)


@pytest.mark.parametrize("payload", [0, 512, 4095])
def test_a_device_without_room_for_one_block_is_not_formatted(payload: int) -> None:
    with pytest.raises(Refused, match="a sealed volume needs more than 34 MiB"):
        unlock.decide(ALLOCATED, view(ABSENT, ABSENT, zero=True, payload=payload), may_format=True)


def test_the_smallest_device_gives_one_block() -> None:
    smallest = view(ABSENT, ABSENT, zero=True, payload=4096 + 511)
    assert unlock.decide(ALLOCATED, smallest, may_format=True) == Format(payload_bytes=4096)


@pytest.mark.parametrize(
    ("shown", "record", "said"),
    [
        ("blank", ACTIVE, "It is not formatted again"),
        ("older", ACTIVE, "shows generation 2 of volume pvc-1, and 3 is committed"),
        ("generation 6", OPENING, "which the register never announced .it knows 5.: the broker's database is older"),
        ("newest", ALLOCATED, "Was the broker's database restored from a backup"),
        ("foreign content", ALLOCATED, "not blank and nothing on it belongs to volume pvc-1"),
        ("a block too small", ACTIVE, "the device is too small"),
        ("a block grown", ACTIVE, "this version can't grow"),
    ],
)
def test_a_refusal_says_what_was_found(shown: str, record: VolumeRecord, said: str) -> None:
    with pytest.raises(SealedLocalError, match=said):
        unlock.decide(record, VIEWS[shown], may_format=True)


@pytest.mark.parametrize("shown", ["older", "generation 6", "generation 3 of another branch"])
def test_a_refused_state_is_told_so_that_an_operator_can_accept_it(shown: str) -> None:
    disk = VIEWS[shown]
    newest = max((slot for slot in disk.slots if isinstance(slot, StateRecord)), key=lambda slot: slot.sequence)
    with pytest.raises(RolledBack) as told:
        unlock.decide(ACTIVE, disk, may_format=True)
    (found,) = re.findall(r"volume accept pvc-1 --found (\S+) --reason TEXT", str(told.value))
    assert disk_state.parse(found, "--found") == newest.state
    accepted = rules.accept(ACTIVE, newest.state, reason="r", now_unix=0)
    assert isinstance(unlock.decide(accepted, disk, may_format=False), Open)


def test_no_header_is_hashed_for_a_format_or_for_a_disk_that_the_records_refuse() -> None:
    def never(copy: HeaderCopy) -> bytes:
        raise AssertionError(f"copy {copy} was read")

    for record, shown in ((ALLOCATED, "blank"), (FORMATTING, "intent"), (ACTIVE, "older"), (ACTIVE, "another header")):
        outcome(record, replace(VIEWS[shown], header=never))


# Any disk at all


RECORDS = st.builds(
    StateRecord,
    kind=st.sampled_from(RecordKind),
    profile=st.sampled_from(Profile),
    key_version=st.integers(1, 2),
    sequence=st.integers(0, 7),
    generation=st.integers(0, 7),
    nonce=st.sampled_from([bytes([number]) * 32 for number in range(8)]),
    epoch=st.sampled_from([bytes.fromhex(EPOCH)] * 3 + [bytes(16)]),
    payload_bytes=st.sampled_from([PAYLOAD, PAYLOAD + 4096]),
    header_sha256=st.sampled_from([HEADER, OTHER]),
)
SLOTS = st.one_of(st.sampled_from(SlotState), RECORDS)
DIGESTS = st.sampled_from([HEADER, OTHER, b"x" * 32])
DISKS = st.builds(
    view,
    SLOTS,
    SLOTS,
    a=DIGESTS,
    b=DIGESTS,
    zero=st.booleans(),
    payload=st.sampled_from([0, PAYLOAD - 4096, PAYLOAD, PAYLOAD + 4096]),
)


@settings(max_examples=400)
@given(record=st.sampled_from([ACTIVE, OPENING, RETIRED, SHREDDED]), disk=DISKS, may_format=st.booleans())
def test_nothing_that_was_ever_active_is_formatted_whatever_the_disk_shows(
    record: VolumeRecord, disk: DiskView, may_format: bool
) -> None:
    assert not isinstance(outcome(record, disk, may_format=may_format), Format)


@settings(max_examples=400)
@given(record=st.sampled_from([ALLOCATED, FORMATTING]), disk=DISKS, may_format=st.booleans())
def test_a_format_needs_permission_and_a_device_that_is_blank_or_ours(
    record: VolumeRecord, disk: DiskView, may_format: bool
) -> None:
    decision = outcome(record, disk, may_format=may_format)
    assert not isinstance(decision, Open)
    if not isinstance(decision, Format):
        return
    begun = any(isinstance(slot, StateRecord) for slot in disk.slots)
    data = [slot for slot in disk.slots if isinstance(slot, StateRecord) and slot.kind is RecordKind.OPEN]
    assert may_format
    assert begun or disk.zero_but_slots
    assert all(slot.generation <= 1 for slot in data)


@settings(max_examples=400)
@given(record=st.sampled_from([ACTIVE, OPENING]), disk=DISKS)
def test_what_is_opened_has_the_registers_header_size_and_generation(record: VolumeRecord, disk: DiskView) -> None:
    decision = outcome(record, disk)
    if not isinstance(decision, Open):
        return
    assert decision.found in disk.slots
    assert disk.header(decision.copy).hex() == record.header_sha256
    assert decision.found.announcement in (record.head, *record.candidates)
    shown = [slot for slot in disk.slots if isinstance(slot, StateRecord) and slot.kind is RecordKind.OPEN]
    of_these_keys = [slot for slot in shown if (slot.profile, slot.key_version) == (Profile.XTS, 1)]
    assert decision.found.sequence == max(slot.sequence for slot in of_these_keys)
    assert disk.device_bytes - PAYLOAD_OFFSET == record.payload_bytes
    other = HeaderCopy.B if decision.copy is HeaderCopy.A else HeaderCopy.A
    assert decision.mend is (None if disk.header(other) == HEADER else other)


# Repairs

UNREAD = rules.accept_unread(ACTIVE, nonce="5a" * 32, epoch=EPOCH, reason="bad sectors", now_unix=1)
BOTH = (HeaderCopy.A, HeaderCopy.B)


@pytest.mark.parametrize(
    ("record", "shown", "wanted"),
    [
        (ACTIVE, "newest", unlock.Repair(sequence=None, copies=())),
        (ACTIVE, "torn record beside the newest", unlock.Repair(sequence=None, copies=())),
        (ACTIVE, "copy A damaged", unlock.Repair(sequence=None, copies=(HeaderCopy.A,))),
        (ACTIVE, "copy B damaged", unlock.Repair(sequence=None, copies=(HeaderCopy.B,))),
        (ACTIVE, "both copies damaged", unlock.Repair(sequence=None, copies=BOTH)),
        (UNREAD, "foreign content", unlock.Repair(sequence=1, copies=())),
        (UNREAD, "newest", unlock.Repair(sequence=4, copies=())),
        (UNREAD, "both copies damaged", unlock.Repair(sequence=4, copies=BOTH)),
        (ACTIVE, "foreign content", Tampered),
        (ACTIVE, "blank", Blanked),
        (ACTIVE, "older", RolledBack),
        (ACTIVE, "another header", RolledBack),
        (ACTIVE, "a block too small", Tampered),
        (ACTIVE, "a block grown", Refused),
        (UNREAD, "a block too small", Tampered),
        (UNREAD, "a block grown", Refused),
        (RETIRED, "newest", Refused),
        (ALLOCATED, "blank", Refused),
        (FORMATTING, "intent", Refused),
        (replace(ACTIVE, payload_bytes=None), "newest", Refused),
        (replace(ACTIVE, header_sha256=None), "newest", Refused),
    ],
)
def test_what_is_repaired(record: VolumeRecord, shown: str, wanted: unlock.Repair | type[SealedLocalError]) -> None:
    if isinstance(wanted, unlock.Repair):
        assert unlock.repair(record, VIEWS[shown]) == wanted
        return
    with pytest.raises(wanted) as caught:
        unlock.repair(record, VIEWS[shown])
    assert type(caught.value) is wanted


def test_before_a_repair_a_disk_that_a_person_accepted_opens_nowhere_and_the_message_says_what_to_do() -> None:
    for shown in VIEWS.values():
        with pytest.raises(SealedLocalError):
            unlock.decide(UNREAD, shown, may_format=True)
    with pytest.raises(Tampered, match=r"A person has accepted this disk.*sealed-local guest repair --volume pvc-1"):
        unlock.decide(UNREAD, VIEWS["foreign content"], may_format=True)
    with pytest.raises(RolledBack, match=r"a person has accepted a disk of which no record can be read"):
        unlock.decide(UNREAD, VIEWS["newest"], may_format=True)
