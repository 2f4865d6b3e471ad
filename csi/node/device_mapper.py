"""Device-mapper asked directly: one ioctl tells what the kernel has under a name, without a process and without the disk.

Layout and numbers are from linux/dm-ioctl.h (`struct dm_ioctl`, 312 bytes, version 4). A suspended or dead device answers
as well as any: the kernel looks into its own tables only.
"""

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi.core.device_number import DeviceNumber
from csi.core.errors import ToolFailed

CONTROL: Final = Path("/dev/mapper/control")
_HEADER: Final = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")
_VERSION: Final = (4, 0, 0)
_DEV_STATUS: Final = 0xC138FD07
_SUSPENDED: Final = 1 << 1


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
    try:
        descriptor = os.open(control, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT and not any(Path("/sys/block").glob("dm-*")):
            return None
        raise ToolFailed(
            f"device-mapper can't be asked through {control}: {error.strerror}. Load the module dm-mod, and let the "
            "driver see the host's /dev"
        ) from error
    try:
        return _asked(descriptor, name)
    finally:
        os.close(descriptor)


def _asked(descriptor: int, name: str) -> Mapping | None:
    request = bytearray(_HEADER.pack(*_VERSION, _HEADER.size, 0, 0, 0, 0, 0, 0, 0, name.encode(), b""))
    try:
        fcntl.ioctl(descriptor, _DEV_STATUS, request)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise ToolFailed(f"device-mapper does not answer about {name}: {error.strerror}") from error
    fields = _HEADER.unpack(request)
    open_count, flags, number, uuid = fields[6], fields[7], fields[10], fields[12]
    return Mapping(
        number=DeviceNumber(os.major(number), os.minor(number)),
        uuid=uuid.split(b"\0", 1)[0].decode(errors="replace"),
        open_count=open_count,
        suspended=bool(flags & _SUSPENDED),
    )
