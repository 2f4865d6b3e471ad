"""A disk is the volume's by its records alone; a blank one is nobody's, whatever the register says."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from csi.core.device_number import DeviceNumber
from csi.core.errors import InUse, NotFound, Refused, Tampered
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.guest import find
from csi.guest.released import Released
from csi.guest.seal import keys, state_record
from csi.guest.seal.mapping import Mapping, mapping_name
from csi.kbs.register import Announcement, FormatGrant, VolumeRecord, VolumeState

BLANK = bytes(4096)
EPOCH = "0e" * 16
ALLOCATED = VolumeRecord(volume_id="pvc-1", key_version=1, profile=Profile.XTS, state=VolumeState.ALLOCATED, revision=1)
FORMATTING = replace(
    ALLOCATED, state=VolumeState.FORMATTING, grant=FormatGrant(nonce="n", measurement="m", deadline_unix=1, epoch=EPOCH)
)
ACTIVE = replace(
    ALLOCATED,
    state=VolumeState.ACTIVE,
    head=Announcement(generation=2, nonce="0a" * 32, epoch=EPOCH),
    announced=2,
    header_sha256="00" * 32,
    payload_bytes=4096,
)


def keys_of(volume_id: str) -> keys.VolumeKeys:
    return keys.derive(Secret(bytes(32)), volume_id, 1)


def record(volume_id: str = "pvc-1", generation: int = 2, nonce: str = "0a" * 32) -> bytes:
    """The record of an open; of generation 0, an intent."""
    made = state_record.intent(Profile.XTS, 1, 4096)
    if generation:
        announced = Announcement(generation=generation, nonce=nonce, epoch=EPOCH)
        made = replace(state_record.opened(made, bytes(32), bytes(32), announced), sequence=generation)
    return state_record.encode(made, keys_of(volume_id), volume_id)


@dataclass
class Disks:
    """What the guest has; each look shows the next of `looks`, the last one again and again until time is up."""

    looks: list[dict[str, tuple[bytes, bytes] | Exception]]
    seen: int = 0
    read: list[str] = field(default_factory=list)

    def disks_appearing(self, seconds: float) -> Iterator[tuple[str, ...]]:
        for _ in range(int(seconds) + 1):
            yield tuple(sorted(self.looks[min(self.seen, len(self.looks) - 1)]))
            self.seen += 1

    def read_slots(self, device: str) -> tuple[bytes, bytes]:
        self.read.append(device)
        shown = self.looks[min(self.seen, len(self.looks) - 1)][device]
        if isinstance(shown, Exception):
            raise shown
        return shown


def plug(*looks: dict[str, tuple[bytes, bytes] | Exception]) -> Disks:
    return Disks(list(looks))


def search(disks: Any, wanted: VolumeRecord, seconds: float = 3) -> str:
    return find.volume_device(disks, Released(record=wanted, keys=keys_of("pvc-1")), seconds)


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("other", [BLANK, b"\xff" * 4096], ids=["blank", "torn"])
def test_a_disk_with_one_record_that_verifies_is_the_volume(slot: int, other: bytes) -> None:
    slots = (record(), other) if slot == 0 else (other, record())
    disks = plug({"/dev/sda": (BLANK, BLANK), "/dev/sdb": slots, "/dev/sdc": (record("pvc-2"), BLANK)})
    assert search(disks, ACTIVE) == "/dev/sdb"


def test_a_format_that_had_begun_is_found_by_its_intent() -> None:
    disks = plug({"/dev/sda": (BLANK, BLANK), "/dev/sdb": (record(generation=0), BLANK)})
    assert search(disks, FORMATTING) == "/dev/sdb"


@pytest.mark.parametrize("wanted", [ALLOCATED, FORMATTING], ids=lambda record: record.state)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_new_volume_never_gets_a_blank_disk_not_even_the_only_one(wanted: VolumeRecord, count: int) -> None:
    disks = plug({f"/dev/sd{letter}": (BLANK, BLANK) for letter in "abc"[:count]})
    with pytest.raises(Refused, match=r"say which is its disk by --device\. Disks now: ") as caught:
        search(disks, wanted, seconds=1000)
    assert type(caught.value) is Refused
    assert disks.seen == 0, "nothing that appears later could be known either, so nothing is waited for"


def test_a_blank_disk_is_not_taken_for_a_volume_that_was_formatted() -> None:
    disks = plug({"/dev/sda": (BLANK, BLANK)})
    with pytest.raises(NotFound, match=r"no disk of this guest shows volume pvc-1 .disks: /dev/sda."):
        search(disks, ACTIVE)


def test_a_disk_that_is_plugged_in_later_is_waited_for() -> None:
    disks = plug({}, {"/dev/sda": (BLANK, BLANK)}, {"/dev/sda": (BLANK, BLANK), "/dev/sdb": (BLANK, record())})
    assert search(disks, ACTIVE) == "/dev/sdb"
    assert disks.seen == 2


def test_without_any_disk_the_answer_says_so_when_time_is_up() -> None:
    disks = plug({})
    with pytest.raises(NotFound, match=r"disks: none.*Name its disk by --device to learn"):
        search(disks, ACTIVE, seconds=5)
    assert disks.seen == 6


@pytest.mark.parametrize(
    "problem",
    [
        InUse("mounted"),
        Refused("not a block device"),
        Tampered("34 MiB are more than this disk has"),
        NotFound("unplugged meanwhile"),
        OSError(5, "Input/output error"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_disk_that_can_not_be_read_does_not_hide_the_right_one(problem: Exception) -> None:
    disks = plug({"/dev/sda": problem, "/dev/sdb": (record(), BLANK)})
    assert search(disks, ACTIVE) == "/dev/sdb"


def test_a_record_of_a_newer_format_on_one_disk_does_not_hide_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    newer, decode = record("pvc-2"), state_record.decode

    def strict(raw: bytes, *more: object) -> object:
        if raw == newer:
            raise Tampered("use a newer guest")
        return decode(raw, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(state_record, "decode", strict)
    disks = plug({"/dev/sda": (newer, BLANK), "/dev/sdb": (record(), BLANK)})
    assert search(disks, ACTIVE) == "/dev/sdb"


def test_no_answer_depends_on_the_order_in_which_blank_disks_and_the_right_one_are_named() -> None:
    shown = {"blank": (BLANK, BLANK), "right": (record(), BLANK), "other": (record("pvc-2"), BLANK)}
    for order in itertools.permutations(shown):
        disks = {f"/dev/sd{letter}": shown[kind] for letter, kind in zip("abc", order, strict=True)}
        assert disks[search(plug(disks), ACTIVE)] == shown["right"]


# A mapping that an earlier call made


@pytest.mark.parametrize(
    ("table", "device"),
    [
        ("0 8 crypt aes-xts-plain64 :64:logon:x 0 8:16 69632", "/dev/sdb"),
        ("0 8 crypt aes-xts-plain64 :64:logon:x 0 8:32 69632", None),
        ("0 8 linear 8:16 0", None),
        ("0 8 crypt aes-xts-plain64 :64:logon:x 0 /dev/sdb 69632", None),
    ],
    ids=["mapped", "its disk is gone", "another kind of mapping", "not a number"],
)
def test_the_device_below_a_mapping_is_known_without_searching(table: str, device: str | None) -> None:
    name = mapping_name("pvc-1")
    mapped = {name: Mapping(name=name, table=table, device=DeviceNumber(253, 0))}
    machine: Any = SimpleNamespace(mapping=mapped.get, node_of={DeviceNumber(8, 16): "/dev/sdb"}.get)
    assert find.mapped_device(machine, "pvc-1") == device
    assert find.mapped_device(machine, "pvc-2") is None


def test_of_two_disks_that_show_the_volume_the_newer_one_is_it() -> None:
    old, new = (record(generation=2), BLANK), (record(generation=2), record(generation=3))
    opening = replace(ACTIVE, announced=3, candidates=(Announcement(generation=3, nonce="0a" * 32, epoch=EPOCH),))
    for disks in ({"/dev/sda": old, "/dev/sdb": new}, {"/dev/sda": new, "/dev/sdb": old}):
        found = search(plug(disks), opening)
        assert disks[found] == new


def test_of_two_disks_that_show_the_volume_the_one_that_the_register_knows_is_it() -> None:
    known, abandoned = (record(generation=2), BLANK), (record(generation=2), record(generation=3, nonce="0b" * 32))
    for disks in ({"/dev/sda": known, "/dev/sdb": abandoned}, {"/dev/sda": abandoned, "/dev/sdb": known}):
        found = search(plug(disks), ACTIVE)
        assert disks[found] == known
