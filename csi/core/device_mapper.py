"""Device-mapper asked directly: what the kernel has under a name, and a device taken away, without a process or the disk.

Layout and numbers are from linux/dm-ioctl.h (`struct dm_ioctl`, 312 bytes, version 4). A suspended or dead device answers
as well as any: the kernel looks into its own tables only.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi.core.device_number import DeviceNumber
from csi.core.errors import ToolFailed

CONTROL: Final = Path("/dev/mapper/control")
_HEADER: Final = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")
_TARGET: Final = struct.Struct("=QQiI16s")
_NAME: Final = struct.Struct("=QI")
_COUNT: Final = struct.Struct("=II")
_VERSION: Final = (4, 0, 0)
_LIST_DEVICES: Final = 0xC138FD02
_DEV_REMOVE: Final = 0xC138FD04
_DEV_STATUS: Final = 0xC138FD07
_TABLE_DEPS: Final = 0xC138FD0B
_TABLE_STATUS: Final = 0xC138FD0C
_SUSPENDED: Final = 1 << 1
_WANT_TABLE: Final = 1 << 4
_BUFFER_FULL: Final = 1 << 8
_ANSWER_BYTES: Final = 1 << 14
_CRYPT: Final = "crypt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A device of device-mapper as the kernel has it now."""

    number: DeviceNumber
    uuid: str
    """Given by the program that made it; LVM writes `LVM-`, the group's UUID and the LV's, without hyphens."""
    open_count: int
    """How many have it open: mounts, loop devices, processes, other mappings on top."""
    suspended: bool


def status(name: str, control: Path = CONTROL) -> Mapping | None:
    """The device of that name; None when the kernel has none.

    Raises `ToolFailed` when the kernel can't be asked: a device that can't be looked for is not absent.
    """
    answer = _asked(_DEV_STATUS, name, control)
    if answer is None:
        return None
    fields = _HEADER.unpack_from(answer)
    open_count, flags, number, uuid = fields[6], fields[7], fields[10], fields[12]
    return Mapping(
        number=_number(number),
        uuid=uuid.split(b"\0", 1)[0].decode(errors="surrogateescape"),
        open_count=open_count,
        suspended=bool(flags & _SUSPENDED),
    )


def names(control: Path = CONTROL) -> tuple[str, ...]:
    """The names of all devices. Raises `ToolFailed` as `status` does."""
    answer = _asked(_LIST_DEVICES, "", control, answer_bytes=_ANSWER_BYTES)
    return tuple(_listed(answer)) if answer is not None else ()


def remove(name: str, control: Path = CONTROL) -> bool:
    """Take the device away; False while anything has it open. One that isn't there is fine.

    The kernel looks and removes in one piece, so no opener slips in between. Raises `ToolFailed` as `status` does.
    """
    try:
        _asked(_DEV_REMOVE, name, control)
    except ToolFailed as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY:
            return False
        raise
    return True


def targets(name: str, control: Path = CONTROL) -> frozenset[str]:
    """The kinds of target in its table (`linear`, `striped`, ...); none when there is no such device."""
    answer = _asked(_TABLE_STATUS, name, control, flags=_WANT_TABLE, answer_bytes=_ANSWER_BYTES)
    if answer is None:
        return frozenset()
    return frozenset(line.split()[2] for line in _lines(answer))


def table(name: str, control: Path = CONTROL) -> str | None:
    """Its whole table, a line a target, as `dmsetup table` prints it; None when there is no such device.

    A key that stands in the table is shown as zeroes. One in the kernel's keyring is no secret by its name.
    """
    answer = _asked(_TABLE_STATUS, name, control, flags=_WANT_TABLE, answer_bytes=_ANSWER_BYTES)
    return "\n".join(_lines(answer)) if answer is not None else None


def lies_on(name: str, control: Path = CONTROL) -> frozenset[DeviceNumber]:
    """The devices that its table was made on, there still or not; none when there is no such device."""
    answer = _asked(_TABLE_DEPS, name, control, answer_bytes=_ANSWER_BYTES)
    if answer is None:
        return frozenset()
    count, _ = _COUNT.unpack_from(answer, _HEADER.size)
    found = struct.unpack_from(f"={count}Q", answer, _HEADER.size + _COUNT.size)
    return frozenset(_number(number) for number in found)


def _lines(answer: bytearray) -> Iterator[str]:
    offset = 0
    for _ in range(_HEADER.unpack_from(answer)[5]):
        at = _HEADER.size + offset
        first, sectors, _, following, kind = _TARGET.unpack_from(answer, at)
        name = kind.split(b"\0", 1)[0].decode(errors="replace")
        words = answer[at + _TARGET.size : answer.index(0, at + _TARGET.size)].decode(errors="replace").split(" ")
        if name == _CRYPT and len(words) > 1 and not words[1].startswith(":"):
            words[1] = "0" * len(words[1])
        yield f"{first} {sectors} {name} {' '.join(words)}"
        offset = following


def _listed(answer: bytearray) -> Iterator[str]:
    offset = _HEADER.size
    while True:
        number, following = _NAME.unpack_from(answer, offset)
        if number == 0:
            return
        start = offset + _NAME.size
        yield answer[start : answer.index(0, start)].decode(errors="surrogateescape")
        if following == 0:
            return
        offset += following


def _number(encoded: int) -> DeviceNumber:
    return DeviceNumber(os.major(encoded), os.minor(encoded))


def _asked(command: int, name: str, control: Path, *, flags: int = 0, answer_bytes: int = 0) -> bytearray | None:
    """The kernel's answer, as long as it has to be; None when it has no device of that name."""
    with _opened(control) as descriptor:
        while descriptor is not None:
            size = _HEADER.size + answer_bytes
            asked = name.encode(errors="surrogateescape")
            header = _HEADER.pack(*_VERSION, size, _HEADER.size, 0, 0, flags, 0, 0, 0, asked, b"")
            request = bytearray(header) + bytearray(answer_bytes)
            try:
                fcntl.ioctl(descriptor, command, request)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return None
                raise ToolFailed(f"device-mapper does not answer about {name}: {error.strerror}") from error
            if not _HEADER.unpack_from(request)[7] & _BUFFER_FULL:
                return request
            answer_bytes *= 4
    return None


@contextmanager
def _opened(control: Path) -> Iterator[int | None]:
    """The control device; None on a machine that has no device-mapper."""
    try:
        descriptor = os.open(control, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT and not any(Path("/sys/block").glob("dm-*")):
            yield None
            return
        raise ToolFailed(
            f"device-mapper can't be asked through {control}: {error.strerror}. Load the module dm-mod, and let the "
            "driver see the host's /dev"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
