"""Without a register only a device that shows nothing, or this volume's begun format, is formatted."""

import itertools
from dataclasses import replace

import pytest

from csi.core.errors import Blanked, ForeignContent, Refused, RolledBack, SealedLocalError, Tampered
from csi.core.sealed import PAYLOAD_OFFSET, Profile
from csi.core.secret import Secret
from csi.core.size import MIB
from csi.guest.decide import DiskView, Format, HeaderCopy, Open
from csi.guest.derived import ask, keys
from csi.guest.derived.decide import Mend, decide, repair
from csi.guest.seal.state_record import RecordKind, Slot, SlotState, StateRecord
from csi.kbs.claim_name import UNNAMED, ClaimName

PAYLOAD = 64 * MIB
HEADER, OTHER = b"h" * 32, b"o" * 32
ABSENT, INVALID = SlotState.ABSENT, SlotState.INVALID
INTENT = StateRecord(kind=RecordKind.INTENT, profile=Profile.XTS, key_version=1, sequence=0, payload_bytes=PAYLOAD)


def opened(number: int, branch: str = "a", follows: str = "a") -> StateRecord:
    """The record of the open of that number, in the branch of a history, after a record of another."""
    return replace(
        INTENT,
        kind=RecordKind.OPEN,
        sequence=number,
        generation=number,
        header_sha256=HEADER,
        nonce=f"{branch}{number}".encode().ljust(32, b"n"),
        follows=f"{follows}{number - 1}".encode().ljust(32, b"n") if number > 1 else bytes(32),
    )


SLOTS: dict[str, Slot] = {
    "absent": ABSENT,
    "invalid": INVALID,
    "intent": INTENT,
    "first": opened(1),
    "second": opened(2),
    "third": opened(3),
    "fourth": opened(4),
    "third of another branch": opened(3, "b"),
    "fifth that names the third": replace(opened(5), follows=opened(3).nonce),
    "of another key version": replace(opened(2), key_version=2),
    "of a shorter device": replace(opened(2), payload_bytes=PAYLOAD - 4096),
    "of a longer device": replace(opened(2), payload_bytes=PAYLOAD + 4096),
}
CHAINS = {("first", "second"), ("second", "third"), ("third", "fourth"), ("second", "third of another branch")}
"""Pairs of which the second names the first as the one that it follows."""
ODD = {"of another key version", "of a shorter device", "of a longer device"}


def view(first: Slot, second: Slot, *, a: bytes = HEADER, b: bytes = HEADER, zero: bool = False) -> DiskView:
    copies = {HeaderCopy.A: a, HeaderCopy.B: b}
    return DiskView(
        device_bytes=PAYLOAD_OFFSET + PAYLOAD,
        slots=(first, second),
        zero_but_slots=zero,
        header=copies.__getitem__,
        copies_equal=lambda: a == b,
    )


ALL = [
    (names, a, b, zero, may)
    for names in itertools.product(SLOTS, repeat=2)
    for a, b in itertools.product((HEADER, OTHER), repeat=2)
    for zero in (False, True)
    for may in (False, True)
]


def outcome(disk: DiskView, *, may_format: bool) -> Format | Open | SealedLocalError:
    try:
        return decide("pvc-1", Profile.XTS, disk, may_format=may_format)
    except SealedLocalError as error:
        return error


def expected(names: tuple[str, str], a: bytes, b: bytes, *, zero: bool, may_format: bool) -> type:
    """What each sight means, told in another way than the code tells it."""
    shown = {name for name in names if name not in ("absent", "invalid", "intent")}
    if not shown:
        if "intent" in names:
            return Format if may_format else Refused
        if names == ("absent", "absent") and zero:
            return Format if may_format else Blanked
        if "invalid" in names or not may_format:
            return Tampered
        return ForeignContent
    if shown & ODD:
        return SealedLocalError  # told apart below
    if len(shown) == 2 and tuple(sorted(names, key=lambda name: SLOTS[name].sequence)) not in CHAINS:  # type: ignore[union-attr]
        return RolledBack
    if names[0] == names[1]:
        return RolledBack  # one record twice is no history
    return Open if HEADER in (a, b) else Tampered


def test_every_sight_of_a_disk_has_the_one_outcome() -> None:
    seen = set()
    for names, a, b, zero, may_format in ALL:
        disk = view(SLOTS[names[0]], SLOTS[names[1]], a=a, b=b, zero=zero)
        got = outcome(disk, may_format=may_format)
        wanted = expected(names, a, b, zero=zero, may_format=may_format)
        if wanted is SealedLocalError:
            # An odd record under one that is right and follows it is not asked; else nothing is opened by it.
            assert not isinstance(got, Format), names
            assert not (isinstance(got, Open) and got.found.payload_bytes != PAYLOAD), names
            continue
        assert type(got) is wanted, (names, zero, may_format, got)
        seen.add(wanted)
    assert seen == {Format, Open, Refused, Blanked, Tampered, ForeignContent, RolledBack}


def test_nothing_is_formatted_that_shows_an_open_or_that_the_policy_forbids() -> None:
    for names, a, b, zero, may_format in ALL:
        disk = view(SLOTS[names[0]], SLOTS[names[1]], a=a, b=b, zero=zero)
        if isinstance(outcome(disk, may_format=may_format), Format):
            assert may_format
            assert set(names) <= {"absent", "intent", "invalid"}
            assert "intent" in names or (names == ("absent", "absent") and zero)


@pytest.mark.parametrize(
    ("slot", "raised"),
    [("of another key version", Tampered), ("of a longer device", Tampered), ("of a shorter device", Refused)],
)
def test_a_record_that_does_not_fit_the_device_or_the_policy_opens_nothing(
    slot: str, raised: type[SealedLocalError]
) -> None:
    assert type(outcome(view(SLOTS[slot], ABSENT), may_format=True)) is raised


@pytest.mark.parametrize(
    ("a", "b", "copy", "mend"),
    [
        (HEADER, HEADER, HeaderCopy.A, None),
        (HEADER, OTHER, HeaderCopy.A, HeaderCopy.B),
        (OTHER, HEADER, HeaderCopy.B, HeaderCopy.A),
    ],
)
def test_the_newest_record_names_the_header_copy(a: bytes, b: bytes, copy: HeaderCopy, mend: HeaderCopy | None) -> None:
    disk = view(opened(2), opened(3), a=a, b=b)
    assert outcome(disk, may_format=False) == Open(copy=copy, found=opened(3), mend=mend)
    wanted = None if mend is None else Mend(lost=mend, whole=copy, found=opened(3))
    assert repair("pvc-1", Profile.XTS, disk) == wanted


@pytest.mark.parametrize(
    ("disk", "said"),
    [
        (view(opened(2), opened(3), a=OTHER, b=OTHER), "both header copies of volume pvc-1 are lost"),
        (view(INVALID, INVALID), "without a register nothing says"),
        (view(ABSENT, ABSENT, zero=True), "without a register nothing says"),
    ],
)
def test_a_repair_without_a_source_is_refused_in_words(disk: DiskView, said: str) -> None:
    with pytest.raises(Refused, match=said):
        repair("pvc-1", Profile.XTS, disk)


def test_a_wrong_root_and_a_rotated_one_are_told_in_one_text() -> None:
    said = {str(outcome(view(INVALID, other), may_format=may)) for other in (INVALID, ABSENT) for may in (True, False)}
    assert len(said) == 1
    assert "the root was replaced or is another one" in said.pop()


# Keys


ROOT = Secret(bytes(range(32)))


def test_keys_are_bound_to_root_volume_and_names() -> None:
    made = [
        keys.derive(root, volume, names)
        for root in (ROOT, Secret(b"x" * 32))
        for volume in ("pvc-1", "pvc-2")
        for names in (UNNAMED, ClaimName(namespace="a"), ClaimName(namespace="a", claim="b"), ClaimName(namespace="ab"))
    ]
    secrets = [got.keys.passphrase.reveal() for got in made] + [got.share.reveal() for got in made]
    assert len(set(secrets)) == len(secrets)


def test_keys_are_what_another_program_computes() -> None:
    """HKDF by hand, as RFC 5869 has it: a format that data depends on must not change unnoticed."""
    import hashlib
    import hmac

    def field(text: bytes) -> bytes:
        return len(text).to_bytes(4, "big") + text

    def expand(key: bytes, info: bytes) -> bytes:
        extracted = hmac.digest(b"sealed-local/v1", key, hashlib.sha256)
        return hmac.digest(extracted, info + b"\x01", hashlib.sha256)

    names = field(b"spark") + field(b"data")
    secret = expand(ROOT.reveal(), field(b"root/volume-secret") + field(b"pvc-1") + names)
    passphrase = expand(secret, field(b"luks-passphrase") + field(b"pvc-1") + field(b"\0\0\0\1"))
    got = keys.derive(ROOT, "pvc-1", ClaimName(namespace="spark", claim="data"))
    assert got.keys.passphrase.reveal() == passphrase


@pytest.mark.parametrize("length", [0, 1, 16, 31])
def test_a_short_root_opens_nothing(length: int) -> None:
    class Broker:
        def get_resource(self, uri: str) -> Secret:
            return Secret(b"r" * length)

    with pytest.raises(Refused, match=rf"has {length} bytes; it needs 32 random ones"):
        ask.ask(Broker(), "kbs:///a/b/c", "pvc-1", UNNAMED)
