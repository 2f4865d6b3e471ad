"""Block devices as the node handles them: zeroing, discarding, the read-only flag, size. Parses nothing on them.

Zeroes are written in place, and what was zeroed is flushed before it counts.
"""

import errno
import fcntl
import logging
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from csi.core import files
from csi.core.device_number import DeviceNumber
from csi.core.errors import DiskFailed, ForeignContent, InUse, Refused
from csi.core.size import GIB, MIB, SECTOR_BYTES

_log = logging.getLogger(__name__)

# Numbers of linux/fs.h.
_BLKROSET: Final = 0x125D
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
# linux/loop.h: the request, and the part of its answer that names the file: its filesystem's device, inode, own device.
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_BYTES: Final = 232
_LOOP_FILE: Final = struct.Struct("=3Q")
_SLICE_BYTES: Final = 1 * GIB
_READ_BYTES: Final = 4 * MIB
_EDGE_BYTES: Final = 1 * MIB


def size(device: str) -> int:
    """Size of a block device in bytes."""
    with _opened(device, os.O_RDONLY) as descriptor:
        return os.lseek(descriptor, 0, os.SEEK_END)


def zero(device: str, offset: int, length: int) -> None:
    """Write zeroes over a range and flush; the kernel uses the disk's own command for it where there is one.

    Raises `InUse` when the device is mounted or somebody else is writing it: after a kill of the driver, an mkfs that it
    had started may still run. Raises `DiskFailed` when the disk takes no zeroes.
    """
    with _opened(device, os.O_RDWR | os.O_EXCL) as descriptor:
        for start, part in _slices(offset, length):
            _write_zeroes(descriptor, device, start, part)
        _flush(descriptor, device, offset)


def clear(device: str, offset: int, length: int, sysfs: Path = Path("/sys")) -> None:
    """See that a range holds only zeroes: written, and flushed, is what isn't zero yet. Raises as `zero` does.

    Nobody can know what a disk shows where something was discarded or zeroed at another time, so it is read, past the
    page cache. A disk with a zeroing command of its own is told to use that: it needs no data for it.
    """
    with _opened(device, os.O_RDWR | os.O_EXCL | os.O_DIRECT) as descriptor:
        if _zeroes_by_itself(descriptor, sysfs):
            for start, part in _slices(offset, length):
                _write_zeroes(descriptor, device, start, part)
        else:
            _zero_where_needed(descriptor, device, offset, length)
        _flush(descriptor, device, offset)


def _zero_where_needed(descriptor: int, device: str, offset: int, length: int) -> None:
    # Memory of a mapping is aligned as O_DIRECT wants it.
    with mmap.mmap(-1, _READ_BYTES) as buffer:
        for start, part in _slices(offset, length, _READ_BYTES):
            if not _shows_zeroes(descriptor, buffer, start, part):
                _write_zeroes(descriptor, device, start, part)


def _shows_zeroes(descriptor: int, buffer: mmap.mmap, start: int, length: int) -> bool:
    """A range that can't be read doesn't: a write makes many a disk replace a bad sector."""
    try:
        with memoryview(buffer)[:length] as part:
            return os.preadv(descriptor, [part], start) == length and buffer[:length] == bytes(length)
    except OSError:
        return False


def _zeroes_by_itself(descriptor: int, sysfs: Path) -> bool:
    device = DeviceNumber.of_block_device(os.fstat(descriptor))
    return _text(sysfs / f"dev/block/{device}/queue/write_zeroes_max_bytes") not in (None, "0")


def _write_zeroes(descriptor: int, device: str, start: int, length: int) -> None:
    try:
        fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("QQ", start, length))
    except OSError as error:
        raise _takes_no_write(device, start, length, error) from error


def _takes_no_write(device: str, start: int, length: int, error: OSError) -> DiskFailed:
    return DiskFailed(device, f"takes no write within the {length} bytes at byte {start}", error)


def _flush(descriptor: int, device: str, start: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise DiskFailed(device, f"takes no write after byte {start}", error) from error


def discard(device: str, offset: int, length: int) -> bool:
    """Tell the disk that a range is free. False when the disk knows no discard: then it keeps the bytes.

    Raises as `zero` does.
    """
    with _opened(device, os.O_RDWR | os.O_EXCL) as descriptor:
        for start, part in _slices(offset, length):
            try:
                fcntl.ioctl(descriptor, _BLKDISCARD, struct.pack("QQ", start, part))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise _takes_no_write(device, start, part, error) from error
                _log.info("no discard", extra={"device": device, "reason": error.strerror})
                return False
    return True


@contextmanager
def reading(device: str) -> Iterator[Callable[[int, int], bytes]]:
    """A function that reads so many bytes at an offset, for as long as the block lasts."""
    with _opened(device, os.O_RDONLY) as descriptor:
        yield lambda offset, length: os.pread(descriptor, length, offset)


def set_read_only(device: str, flag: bool) -> None:
    """Set the kernel's read-only flag; it lasts until the device is deactivated."""
    with _opened(device, os.O_RDONLY) as descriptor:
        fcntl.ioctl(descriptor, _BLKROSET, struct.pack("i", int(flag)))


def edges_blank(device: str) -> bool:
    """Whether the first and the last MiB hold only zeroes: content that no probe knows is content, too."""
    with _opened(device, os.O_RDONLY) as descriptor:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        head = os.pread(descriptor, min(_EDGE_BYTES, end), 0)
        tail = os.pread(descriptor, min(_EDGE_BYTES, end), max(0, end - _EDGE_BYTES))
        return head == bytes(len(head)) and tail == bytes(len(tail))


def number(path: str) -> DeviceNumber | None:
    """Number of the block device at a path, links not followed; None for anything else."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return DeviceNumber.of_block_device(status)


def resolved(path: str) -> str | None:
    """The device that a path leads to; None when it is absent or not a block device."""
    real = os.path.realpath(path)
    return real if number(real) is not None else None


def leads_to(path: str) -> DeviceNumber | None:
    """Number of the block device that a path leads to, links followed; None when there is none."""
    real = resolved(path)
    return number(real) if real is not None else None


def mapped(name: str, sysfs: Path = Path("/sys")) -> DeviceNumber | None:
    """Number of the device-mapper device of that name, as the kernel says; None when it has none."""
    for entry in sysfs.glob("block/dm-*/dm/name"):
        if _text(entry) == name:
            return _number_in(entry.parents[1] / "dev")
    return None


def mapping_name(device: DeviceNumber, sysfs: Path = Path("/sys")) -> str | None:
    """The device-mapper name of a device; None for one of another kind."""
    return _text(sysfs / f"dev/block/{device}/dm/name")


def loops_on(device: DeviceNumber, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> int:
    """How many loop devices lie on this device, whatever path they were given and in whatever namespace."""
    found = sysfs.glob("block/loop*/loop/backing_file")
    return sum(_loop_lies_on(dev / entry.parents[1].name, _text(entry)) == device for entry in found)


def _loop_lies_on(loop: Path, named: str | None) -> DeviceNumber | None:
    """The block device under a loop device. The kernel says it by number; where it can't be asked, by the path."""
    answer = bytearray(_LOOP_BYTES)
    try:
        with _opened(str(loop), os.O_RDONLY) as descriptor:
            fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, answer)
    except OSError as error:
        files.raise_if_blind(error)
        return leads_to(named) if named else None
    except Refused:
        return leads_to(named) if named else None
    own = _LOOP_FILE.unpack_from(answer)[2]
    return DeviceNumber(os.major(own), os.minor(own)) if own else None


def exists(device: DeviceNumber, sysfs: Path = Path("/sys")) -> bool:
    """Whether the kernel has a block device of this number now."""
    return (sysfs / f"dev/block/{device}").exists()


def mounted_anywhere(device: DeviceNumber, sysfs: Path = Path("/sys")) -> bool:
    """Whether a filesystem of the device is mounted, be it in another mount namespace: ext4, xfs and btrfs each show it."""
    name = (sysfs / f"dev/block/{device}").resolve().name
    return any((sysfs / "fs").glob(f"*/{name}"))


def holders(device: DeviceNumber, sysfs: Path = Path("/sys")) -> tuple[str, ...]:
    """Devices that are made on top of this one, by device-mapper's names where they have one."""
    found = sorted((sysfs / f"dev/block/{device}/holders").glob("*"))
    return tuple(_shown(_text(entry / "dm/name") or entry.name) for entry in found)


def _shown(name: str) -> str:
    """As a message can carry it."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def mapping_uuid(device: DeviceNumber, sysfs: Path = Path("/sys")) -> str | None:
    """The device-mapper UUID of a device; None for one of another kind."""
    return _text(sysfs / f"dev/block/{device}/dm/uuid")


def read_only(device: DeviceNumber, sysfs: Path = Path("/sys")) -> bool:
    """The kernel's read-only flag, without opening the device."""
    return _text(sysfs / f"dev/block/{device}/ro") == "1"


def _text(path: Path) -> str | None:
    """A kernel file's line; None when it is gone, as its device may be at any moment. Names of files, which people gave,
    need not be UTF-8.
    """
    try:
        return path.read_bytes().decode(errors="surrogateescape").rstrip("\n")
    except OSError as error:
        files.raise_if_blind(error)
        return None


def _number_in(path: Path) -> DeviceNumber | None:
    text = _text(path)
    return DeviceNumber.parse(text) if text is not None else None


def _slices(offset: int, length: int, most: int = _SLICE_BYTES) -> Iterator[tuple[int, int]]:
    """Whole 512-byte sectors in pieces that the kernel takes in one call."""
    end = offset + length - length % SECTOR_BYTES
    for start in range(offset, end, most):
        yield start, min(most, end - start)


@contextmanager
def _opened(device: str, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(Path(device), flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUse(f"{device} is mounted or in use by another program; wait for its end, then repeat") from error
        raise
    try:
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise ForeignContent(f"{device} is not a block device; something else lies there")
        yield descriptor
    finally:
        os.close(descriptor)
