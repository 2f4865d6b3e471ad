"""Zeroing and discarding ask the kernel for the device alone (O_EXCL), and touch nothing that it doesn't give."""

import errno
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from csi.core import disks
from csi.core.errors import DiskFailed, InUse
from csi.core.size import GIB, MIB

BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
PIECE = 4 * MIB
Change = Callable[[str, int, int], object]


class Kernel:
    """One block device: who asks for it alone is refused while somebody else has it (open(2))."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.busy = False
        self.fails: int | None = None
        self.done: list[tuple[int, int, int]] = []
        self.flushed = 0
        self.written: set[int] = set()
        """Numbers of the 4 MiB pieces that hold something."""
        self.unreadable: set[int] = set()
        patch.setattr(disks.os, "open", self.open)
        patch.setattr(disks.os, "fstat", lambda _: os.stat_result((0o060600, *[0] * 9), {"st_rdev": 0}))
        patch.setattr(disks.os, "close", lambda _: None)
        patch.setattr(disks.os, "fsync", self.fsync)
        patch.setattr(disks.fcntl, "ioctl", self.ioctl)
        patch.setattr(disks.os, "preadv", self.preadv)

    def open(self, _: object, flags: int) -> int:
        assert flags & os.O_RDWR
        if self.busy and flags & os.O_EXCL:
            raise OSError(errno.EBUSY, "busy")
        return 99

    def fsync(self, _: int) -> None:
        self.flushed = len(self.done)

    def preadv(self, _: int, buffers: Sequence[memoryview], start: int) -> int:
        (into,) = buffers
        piece = start // PIECE
        if piece in self.unreadable:
            raise OSError(errno.EIO, "bad sector")
        # One byte, and the last one: what looks at less than all of it would miss it.
        into[:] = bytes(len(into) - 1) + (b"x" if piece in self.written else bytes(1))
        return len(into)

    def ioctl(self, _: int, request: int, argument: bytes) -> None:
        if self.fails is not None:
            raise OSError(self.fails, os.strerror(self.fails))
        self.done.append((request, *struct.unpack("QQ", argument)))


@pytest.fixture
def kernel(tmp_path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield Kernel(patch)


@pytest.mark.parametrize("change", [disks.zero, disks.clear, disks.discard])
def test_a_device_that_somebody_has_is_left_as_it_is(kernel: Kernel, change: Change) -> None:
    kernel.busy = True
    with pytest.raises(InUse, match=r"/dev/x is mounted or in use"):
        change("/dev/x", 0, 4096)
    assert kernel.done == []


@pytest.mark.parametrize(("change", "request_"), [(disks.zero, BLKZEROOUT), (disks.discard, BLKDISCARD)])
def test_the_whole_range_and_nothing_else_is_changed(kernel: Kernel, change: Change, request_: int) -> None:
    change("/dev/x", 4096, 2 * GIB + 512)
    assert kernel.done == [
        (request_, 4096, GIB),
        (request_, 4096 + GIB, GIB),
        (request_, 4096 + 2 * GIB, 512),
    ]


def test_what_was_zeroed_is_flushed_before_it_counts(kernel: Kernel) -> None:
    disks.zero("/dev/x", 0, 4096)
    assert kernel.flushed == 1


def test_only_what_is_not_zero_yet_is_written(kernel: Kernel, tmp_path: Path) -> None:
    kernel.written, kernel.unreadable = {1, 3}, {2}
    disks.clear("/dev/x", 0, 3 * PIECE + 512, tmp_path)
    assert kernel.done == [(BLKZEROOUT, PIECE, PIECE), (BLKZEROOUT, 2 * PIECE, PIECE), (BLKZEROOUT, 3 * PIECE, 512)]
    assert kernel.flushed == 3


@pytest.mark.parametrize(("most", "ranges"), [("0", []), ("2147483136", [(BLKZEROOUT, 0, 2 * PIECE)])])
def test_a_disk_that_zeroes_by_itself_is_told_to_and_not_read(
    kernel: Kernel, tmp_path: Path, most: str, ranges: list[object]
) -> None:
    queue = tmp_path / "dev/block/0:0/queue"
    queue.mkdir(parents=True)
    (queue / "write_zeroes_max_bytes").write_text(most + "\n")
    disks.clear("/dev/x", 0, 2 * PIECE, tmp_path)
    assert kernel.done == ranges


@pytest.mark.parametrize("change", [disks.zero, disks.clear])
def test_a_disk_that_takes_no_zeroes_is_named_with_the_place(kernel: Kernel, change: Change) -> None:
    kernel.fails, kernel.written = errno.EIO, {0, 1}
    with pytest.raises(
        DiskFailed, match=r"/dev/x takes no write within the 4194304 bytes at byte 4194304: Input/output"
    ):
        change("/dev/x", PIECE, PIECE)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_without_discard_says_so_and_a_failing_one_is_an_error(
    kernel: Kernel, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert disks.discard("/dev/x", 0, 4096) is True
    assert caplog.messages == []
    kernel.fails = number
    assert disks.discard("/dev/x", 0, 4096) is False
    assert caplog.messages == ["no discard"]
    kernel.fails = errno.EIO
    with pytest.raises(DiskFailed, match="Input/output"):
        disks.discard("/dev/x", 0, 4096)
