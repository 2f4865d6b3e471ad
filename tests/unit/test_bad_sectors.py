"""A bad sector in the head costs its block: it shows as noise that nothing authenticates, and never as blank."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.core.errors import Refused
from csi.guest.seal import sealed_device

BLOCK = 4096
LENGTH = 256 * BLOCK


@pytest.fixture
def disk(tmp_path: Path) -> int:
    path = tmp_path / "disk"
    path.write_bytes(bytes([number % 251 + 1 for number in range(LENGTH // BLOCK)]) * BLOCK)
    return os.open(path, os.O_RDONLY)


def broken(monkeypatch: pytest.MonkeyPatch, bad: set[int], code: int = errno.EIO) -> list[int]:
    """Reads that touch a bad block fail as a whole; answers how many reads there were."""
    real: Callable[..., int] = os.preadv
    reads: list[int] = []

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        reads.append(offset)
        (buffer,) = buffers
        if bad & set(range(offset // BLOCK, (offset + len(buffer) - 1) // BLOCK + 1)):
            raise OSError(code, os.strerror(code))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return reads


@pytest.mark.parametrize("bad", [set(), {0}, {255}, {7, 8, 100}])
def test_all_but_the_bad_blocks_is_read(disk: int, monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    whole = os.pread(disk, LENGTH, 0)
    reads = broken(monkeypatch, bad)
    found = bytes(sealed_device._pread(disk, LENGTH, 0))
    for block in range(LENGTH // BLOCK):
        place = slice(block * BLOCK, (block + 1) * BLOCK)
        assert found[place] == (b"\xff" * BLOCK if block in bad else whole[place])
    assert len(reads) <= 1 + 20 * len(bad), "a bad sector is not looked for block by block"


def test_a_disk_that_reads_nothing_is_given_up_soon(disk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = broken(monkeypatch, set(range(LENGTH // BLOCK)))
    with pytest.raises(OSError, match="Input/output error"):
        sealed_device._pread(disk, LENGTH, 0)
    assert len(reads) < 200


def test_another_error_than_the_mediums_is_no_bad_sector(disk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, {3}, errno.EINVAL)
    with pytest.raises(OSError, match="Invalid argument"):
        sealed_device._pread(disk, LENGTH, 0)


def test_64_bad_blocks_are_borne_and_not_one_more(disk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, set(range(0, 128, 2)))
    assert bytes(sealed_device._pread(disk, LENGTH, 0)).count(b"\xff" * BLOCK) == 64
    broken(monkeypatch, set(range(0, 130, 2)))
    with pytest.raises(OSError, match="Input/output error"):
        sealed_device._pread(disk, LENGTH, 0)


def test_a_device_that_ends_early_is_not_used(disk: int) -> None:
    with pytest.raises(Refused, match="ends before its size"):
        sealed_device._pread(disk, LENGTH, BLOCK)
