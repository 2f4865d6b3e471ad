"""A repair of the head, killed at every point, on a disk that loses what was not flushed: repeated, it gets through.

Whatever died, the data is there afterwards, and what was whole before is never made worse.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from csi.broker import rules as register
from csi.core.errors import Refused, SealedLocalError, Tampered
from csi.core.header_digest import header_digest
from tests.fakes.sealed_guest import HEADER_BYTES, NOW, RECORD_OFFSETS, Died, Fate, Machine, small_format

ENOUGH = 60
PARTS = {"copy A": 0, "copy B": HEADER_BYTES, "record 0": RECORD_OFFSETS[0], "record 1": RECORD_OFFSETS[1]}
LOSSES = [loss for count in (1, 2, 3, 4) for loss in combinations(PARTS, count)]


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_format():
        yield


def damaged(tmp_path: Path, loss: tuple[str, ...]) -> Machine:
    """A volume with data that has lost these parts, and a person's word where its records need one."""
    machine = Machine(str(tmp_path))
    for content in (b"one", b"two"):
        machine.open()
        machine.write_file(content)
        machine.close()
    image = bytearray(machine.disk.content)
    for part in loss:
        image[PARTS[part] + 64 : PARTS[part] + 4096] = b"\xff" * 4032
    machine.disk.show(bytes(image))
    try:
        machine.repair()
    except SealedLocalError:
        assert machine.record is not None
        machine.record = register.accept_unread(
            machine.record, nonce="5a" * 32, epoch=machine.epoch, reason="bad sectors", now_unix=NOW
        )
    machine.disk.show(bytes(image))
    return machine


def killed_at(machine: Machine, ticks: int, fate: Fate) -> bool:
    """Whether the repair got through."""
    machine.fuse = ticks
    try:
        machine.repair()
    except Died:
        machine.end(fate)
        return False
    machine.fuse = None
    return True


@pytest.mark.parametrize(
    "fate", [Fate.KILLED, Fate.LOST, Fate.FIRST_HALVES, Fate.LAST_HALVES], ids=lambda fate: fate.name
)
@pytest.mark.parametrize("loss", LOSSES, ids="+".join)
def test_a_repair_killed_at_any_point_is_repeated_and_the_data_is_there(
    tmp_path: Path, loss: tuple[str, ...], fate: Fate
) -> None:
    for ticks in range(ENOUGH):
        machine = damaged(tmp_path, loss)
        before = machine.record
        through = killed_at(machine, ticks, fate)
        machine.repair()
        assert machine.record == before, "a repair changes no state of the register"
        assert not machine.repair(), "and a second one has nothing to do"
        machine.open()
        assert (machine.read_file(), machine.made_on_active) == (b"two", 0)
        if through:
            return
    raise AssertionError("the repair never got through")


def test_with_another_header_than_the_registers_nothing_is_written(tmp_path: Path) -> None:
    machine = damaged(tmp_path, ("copy A", "copy B"))
    image = bytes(machine.disk.content)
    machine.escrow = machine.escrow[:-1] + b"x"
    with pytest.raises(Refused, match="no copy of the header of volume pvc-1 as it is now"):
        machine.repair()
    assert bytes(machine.disk.content) == image


def test_a_header_that_the_allow_list_refuses_is_not_written(tmp_path: Path) -> None:
    machine = damaged(tmp_path, ("copy A", "copy B"))
    image = bytes(machine.disk.content)
    machine.escrow = machine.escrow[:-1] + b"x"
    assert machine.record is not None
    machine.record = replace(machine.record, header_sha256=header_digest(machine.escrow).hex(), unwritten=True)
    record = register.accept_unread(machine.record, nonce="6b" * 32, epoch=machine.epoch, reason="r", now_unix=NOW)
    machine.record = record
    with pytest.raises(Tampered, match="behind its keyslot"):
        machine.repair()
    assert bytes(machine.disk.content) == image
