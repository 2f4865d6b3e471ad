"""A volume whose broker keeps no register: killed anywhere and repeated it opens, and nothing else opens in its place."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csi.core.errors import Blanked, Busy, ForeignContent, InUse, Refused, RolledBack, SealedLocalError, Tampered
from csi.core.sealed import Freshness
from csi.core.secret import Secret
from csi.guest import steps
from csi.guest.policy import FormatRule, GuestAccess
from csi.guest.seal import state_record
from csi.guest.seal.state_record import StateRecord
from csi.kbs.claim_name import ClaimName
from tests.fakes.sealed_guest import HEADER_BYTES, RECORD_OFFSETS, VOLUME, Died, Fate, Machine, small_format

OTHER_ROOT = Secret(b"o" * 32)


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_format():
        yield


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(mount_point=str(tmp_path / "data"))


def used(machine: Machine) -> Machine:
    """Formatted, written to and closed."""
    assert machine.derived().unlock().formatted_now
    machine.write_file(b"mine")
    machine.close()
    return machine


def refused(machine: Machine, raised: type[SealedLocalError], **changes: object) -> str:
    """The error's text; nothing is written, nothing stays mapped."""
    before = bytes(machine.disk.content)
    with pytest.raises(raised) as caught:
        machine.derived(**changes).unlock()
    assert type(caught.value) is raised
    assert bytes(machine.disk.content) == before
    assert not machine.live
    return str(caught.value)


def test_formats_writes_closes_and_reopens_under_unverified_freshness(machine: Machine) -> None:
    first = machine.derived().unlock()
    assert (first.formatted_now, first.generation, first.freshness) == (True, 2, Freshness.UNVERIFIED)
    machine.write_file(b"mine")
    again = machine.derived().unlock()
    assert (again.mounted_now, again.generation) == (False, 2)
    machine.close()
    machine.said.clear()
    second = machine.derived(format=FormatRule.NEVER).unlock()
    assert (second.formatted_now, second.generation, second.freshness) == (False, 3, Freshness.UNVERIFIED)
    assert "freshness is unverified" in machine.said[0]
    assert machine.read_file().startswith(b"mine")
    assert machine.record is None, "nobody asked a register"


def test_a_reader_writes_nothing(machine: Machine) -> None:
    before = bytes(used(machine).disk.content)
    opened = machine.derived(access=GuestAccess.READ_ONLY).unlock()
    assert (opened.read_only, opened.generation) == (True, 2)
    assert bytes(machine.disk.content) == before


@pytest.mark.parametrize("fate", Fate)
def test_killed_at_any_moment_and_repeated_it_opens_with_what_was_written(tmp_path: Path, fate: Fate) -> None:
    for fuse in range(400):
        machine = Machine(mount_point=str(tmp_path / "data"), fuse=fuse)
        wrote, done = b"", False
        try:
            machine.derived().unlock()
            machine.write_file(b"mine")
            wrote = b"mine"
            machine.close()
            machine.derived().unlock()
            done = True
        except Died:
            pass
        machine.end(fate)
        if _torn_before_anything(machine):
            assert fate in (Fate.FIRST_HALVES, Fate.LAST_HALVES)
            refused(machine, Tampered)
            continue
        machine.derived().unlock()
        assert machine.read_file().startswith(wrote)
        machine.close()
        if done:
            return
    raise AssertionError("the fuse was too short to come to the end")


def _torn_before_anything(machine: Machine) -> bool:
    """A power cut in the write of the very first record leaves a device that nobody can tell from a changed one."""
    intent = bytes(machine.disk.content[RECORD_OFFSETS[0] : RECORD_OFFSETS[0] + 4096])
    rest = bytes(machine.disk.content[:HEADER_BYTES])
    return any(intent) and not any(rest) and (not any(intent[:64]) or not any(intent[4064:]))


@pytest.mark.parametrize(
    "changes", [{"root": OTHER_ROOT}, {"names": ClaimName(namespace="other")}], ids=["root", "names"]
)
def test_another_root_or_other_names_open_nothing_and_never_format(
    machine: Machine, changes: dict[str, object]
) -> None:
    assert "the root was replaced or is another one" in refused(used(machine), Tampered, **changes)


def test_never_and_read_only_refuse_a_blank_device(machine: Machine) -> None:
    assert "shows nothing" in refused(machine, Blanked, format=FormatRule.NEVER)
    refused(machine, Blanked, access=GuestAccess.READ_ONLY)


@pytest.mark.parametrize("place", ["first byte", "before the records", "behind them", "last byte"])
def test_one_byte_anywhere_forbids_the_format(machine: Machine, place: str) -> None:
    size = len(machine.disk.content)
    offset = {
        "first byte": 0,
        "before the records": RECORD_OFFSETS[0] - 1,
        "behind them": RECORD_OFFSETS[1] + 4096,
        "last byte": size - 1,
    }[place]
    image = bytearray(size)
    image[offset] = 1
    machine.disk.show(bytes(image))
    refused(machine, ForeignContent)


def test_a_changed_header_is_refused_and_one_lost_copy_is_repaired(machine: Machine) -> None:
    good = bytes(used(machine).disk.content)
    both = bytearray(good)
    both[4096] ^= 1
    machine.disk.show(bytes(both))
    assert machine.derived().repair() is True
    assert bytes(machine.disk.content) == good
    assert machine.derived().repair() is False
    both[HEADER_BYTES + 4096] ^= 1
    machine.disk.show(bytes(both))
    assert "neither header copy" in refused(machine, Tampered)
    with pytest.raises(Refused, match="a broker of this kind keeps none"):
        machine.derived().repair()


def test_two_states_of_the_disk_are_not_mixed_unnoticed(machine: Machine) -> None:
    old = bytes(used(machine).disk.content)
    for _ in range(2):
        machine.derived().unlock()
        machine.close()
    mixed, place = bytearray(machine.disk.content), RECORD_OFFSETS[1]
    mixed[place : place + 4096] = old[place : place + 4096]
    machine.disk.show(bytes(mixed))
    refused(machine, RolledBack)


def test_what_the_host_can_do_unnoticed_is_as_the_documents_say(machine: Machine) -> None:
    old = bytes(used(machine).disk.content)
    machine.derived().unlock()
    machine.write_file(b"newer")
    machine.close()
    machine.disk.show(old)
    assert machine.derived().unlock().freshness == "unverified"
    assert machine.read_file().startswith(b"mine")
    machine.close()
    machine.disk.show(bytes(len(old)))
    assert machine.derived().unlock().formatted_now, "a blank disk in the place of a used one is new"
    assert any("A host that hides a used volume's disk shows the same" in line for line in machine.said)


def test_inspect_says_what_is_there_and_that_nobody_confirms_it(machine: Machine) -> None:
    blank = list(machine.derived().described())
    assert "an open for writing: would format it, if the policy allows that" in blank
    lines = list(used(machine).derived().described())
    assert any(line.startswith("register: none") for line in lines)
    assert any("freshness is unverified" in line for line in lines)
    assert "an open for writing: would open it by header copy A" in lines
    assert not any("NOT" in line for line in lines)


def test_a_mapping_alone_is_made_of_a_formatted_volume_only(machine: Machine) -> None:
    with pytest.raises(Blanked):
        machine.derived().map_only()
    used(machine)
    assert machine.derived().map_only().path.startswith("/dev/mapper/sealed-")
    for again in (machine.derived().map_only, machine.derived().repair):
        with pytest.raises(InUse):
            again()


def test_a_repair_writes_no_header_that_the_record_does_not_authenticate(machine: Machine) -> None:
    own = used(machine).derived().session.keys
    for offset in RECORD_OFFSETS:
        found = state_record.decode(bytes(machine.disk.content[offset : offset + 4096]), own, VOLUME)
        assert isinstance(found, StateRecord)
        machine.disk.write(offset, state_record.encode(replace(found, header_mac=bytes(32)), own, VOLUME))
    machine.disk.write(4096, b"changed")
    before = bytes(machine.disk.content)
    with pytest.raises(Tampered, match="not the one that the volume's state record authenticates"):
        machine.derived().repair()
    assert bytes(machine.disk.content) == before


def test_a_record_that_another_guest_writes_meanwhile_ends_the_open(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two guests can't be told apart in general; one that comes between the look and the write is noticed."""
    closed = bytes(used(machine).disk.content)
    machine.derived().unlock()
    machine.close()
    newer = bytes(machine.disk.content)
    machine.disk.show(closed)
    settle = steps.settle

    def other_guest(*given: Any) -> None:
        settle(*given)
        machine.disk.show(newer)

    monkeypatch.setattr(steps, "settle", other_guest)
    with pytest.raises(Busy, match="another guest opened volume pvc-1 at this moment"):
        machine.derived().unlock()
    assert bytes(machine.disk.content) == newer
