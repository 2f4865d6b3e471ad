"""The raw device of a sealed volume: one reading of its head into private memory, and flushed writes of records and copies.

The reading goes past the page cache: it shows what the device has now, and leaves no second copy in memory. Parses nothing:
what the bytes mean is decided after their MAC was verified.
"""

import errno
import mmap
import os
from pathlib import Path
from typing import Final

from csi.core import spans
from csi.core.device_number import DeviceNumber
from csi.core.errors import InUse, NotFound, Refused, Tampered
from csi.core.sealed import (
    HEADER_A_OFFSET,
    HEADER_B_OFFSET,
    HEADER_PARTS_BYTES,
    PAYLOAD_OFFSET,
    STATE_RECORD_BYTES,
    STATE_RECORD_OFFSETS,
)
from csi.core.size import MIB
from csi.guest.seal.head import Head

_ALIGNMENT: Final = 4096
_COPIES: Final = (HEADER_A_OFFSET, HEADER_B_OFFSET)
_MEDIUM_ERRORS: Final = frozenset((errno.EIO, errno.ENODATA, errno.EILSEQ))
_MOST_BAD_BLOCKS: Final = 64
"""A disk with more of them in its head is dying, and each one may take it seconds."""
_UNREADABLE: Final = b"\xff"


def read_head(device: str) -> Head:
    """Read the head once, exclusively: a device that is mounted or mapped is refused with `InUse`."""
    descriptor = _open_exclusive(device)
    try:
        number = DeviceNumber.of_block_device(os.fstat(descriptor))
        if number is None:
            raise Refused(f"{device} is not a block device")
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size <= PAYLOAD_OFFSET:
            raise Tampered(f"{device} has {size} bytes; a sealed volume always has more than {PAYLOAD_OFFSET}")
        header_a, header_b = (bytes(_pread(descriptor, HEADER_PARTS_BYTES, offset)) for offset in _COPIES)
        return Head(
            device=device,
            number=number,
            device_bytes=size,
            header_a=header_a,
            header_b=header_b,
            slots=_slots(descriptor),
            # A formatted volume shows it in its headers; only otherwise is all of it looked at.
            zero_but_slots=spans.is_zero(header_a) and spans.is_zero(header_b) and _zero_but_slots(descriptor, size),
        )
    finally:
        os.close(descriptor)


def read_slots(device: str, number: DeviceNumber | None = None) -> tuple[bytes, bytes]:
    """The two state records as the device shows them at this moment, past the page cache; the device may be mapped.

    Raises `Refused` when `number` is given and the path leads to another device by now.
    """
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        _require_number(descriptor, device, number)
        return _slots(descriptor)
    finally:
        os.close(descriptor)


def number_of(device: str) -> DeviceNumber:
    """Major and minor number of a block device. Raises `NotFound` or `Refused`."""
    try:
        number = DeviceNumber.of_block_device(Path(device).stat())
    except FileNotFoundError:
        raise NotFound(f"there is no device {device}") from None
    if number is None:
        raise Refused(f"{device} is not a block device")
    return number


def write(device: str, offset: int, content: bytes | memoryview, number: DeviceNumber | None) -> None:
    """Write bytes below the payload and flush them to the disk before returning.

    Raises `Refused` when the path leads to another device than `number` by now.
    """
    descriptor = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _require_number(descriptor, device, number)
        view = memoryview(content)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_number(descriptor: int, device: str, number: DeviceNumber | None) -> None:
    if number is not None and DeviceNumber.of_block_device(os.fstat(descriptor)) != number:
        raise Refused(f"{device} is another device than a moment ago; nothing was written to it")


def _open_exclusive(device: str) -> int:
    try:
        return os.open(device, os.O_RDONLY | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no device {device}; was the volume plugged into this guest?") from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUse(f"{device} is in use; close what uses it first") from error
        raise Refused(f"{device} can't be read: {error.strerror}") from error


def _slots(descriptor: int) -> tuple[bytes, bytes]:
    first, second = (bytes(_pread(descriptor, STATE_RECORD_BYTES, offset)) for offset in STATE_RECORD_OFFSETS)
    return first, second


def _zero_but_slots(descriptor: int, size: int) -> bool:
    """Read MiB by MiB into the same memory: new memory for all of it would take longer to get than the reading."""
    memory, bad = memoryview(mmap.mmap(-1, MIB)), list[int]()
    for offset in (*range(0, PAYLOAD_OFFSET, MIB), (size - MIB) // _ALIGNMENT * _ALIGNMENT):
        _fill(descriptor, memory, offset, bad)
        if not spans.is_zero(memory[STATE_RECORD_BYTES if offset in STATE_RECORD_OFFSETS else 0 :]):
            return False
    return True


def _pread(descriptor: int, length: int, offset: int) -> memoryview:
    """Read into memory of its own pages, which is what direct reading wants.

    What the disk can't read shows as `_UNREADABLE`: authenticated by nothing, and never blank.
    """
    target = memoryview(mmap.mmap(-1, length))
    _fill(descriptor, target, offset, [])
    return target


def _fill(descriptor: int, target: memoryview, offset: int, bad: list[int]) -> None:
    """Halves a range that has a bad sector, down to the block, so that one costs its block and not a whole header copy."""
    done = 0
    while done < len(target):
        part = target[done:]
        try:
            count = os.preadv(descriptor, [part], offset + done)
        except OSError as error:
            if error.errno not in _MEDIUM_ERRORS or len(bad) >= _MOST_BAD_BLOCKS:
                raise
            if len(part) <= _ALIGNMENT:
                bad.append(offset + done)
                part[:] = _UNREADABLE * len(part)
            else:
                half = len(part) // 2 // _ALIGNMENT * _ALIGNMENT
                _fill(descriptor, part[:half], offset + done, bad)
                _fill(descriptor, part[half:], offset + done + half, bad)
            return
        if count == 0:
            raise Refused("the device ends before its size; it is not used")
        done += count
