"""Zeroing and discarding ask the kernel for the device alone (O_EXCL), and touch nothing that it doesn't give."""

import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from csi.core import disks
from csi.core.errors import InUse
from csi.core.size import GIB

BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
Change = Callable[[str, int, int], object]


class Kernel:
    """One block device: who asks for it alone is refused while somebody else has it (open(2))."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.busy = False
        self.fails: int | None = None
        self.done: list[tuple[int, int, int]] = []
        self.flushed = 0
        patch.setattr(disks.os, "open", self.open)
        patch.setattr(disks.os, "fstat", lambda _: os.stat_result((0o060600, *[0] * 9)))
        patch.setattr(disks.os, "close", lambda _: None)
        patch.setattr(disks.os, "fsync", self.fsync)
        patch.setattr(disks.fcntl, "ioctl", self.ioctl)

    def open(self, _: object, flags: int) -> int:
        assert flags & os.O_RDWR
        if self.busy and flags & os.O_EXCL:
            raise OSError(errno.EBUSY, "busy")
        return 99

    def fsync(self, _: int) -> None:
        self.flushed = len(self.done)

    def ioctl(self, _: int, request: int, argument: bytes) -> None:
        if self.fails is not None:
            raise OSError(self.fails, os.strerror(self.fails))
        self.done.append((request, *struct.unpack("QQ", argument)))


@pytest.fixture
def kernel() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield Kernel(patch)


@pytest.mark.parametrize("change", [disks.zero, disks.discard])
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


def test_progress_is_told_of_a_long_zeroing_only(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    disks.zero("/dev/x", 0, GIB)
    assert caplog.messages == []
    disks.zero("/dev/x", 4096, GIB + 512)
    assert [getattr(record, "done_bytes", 0) for record in caplog.records] == [GIB, GIB + 512]


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
    with pytest.raises(OSError, match="Input/output"):
        disks.discard("/dev/x", 0, 4096)
