"""The number by which the kernel knows a device. A path may lead elsewhere a moment later; a number says which device it
is.
"""

import os
import stat
from dataclasses import dataclass
from typing import Final

_MAJORS: Final = 1 << 12
_MINORS: Final = 1 << 20
"""The kernel keeps a number in 32 bits. What does not fit is no device, and no system call takes it."""


@dataclass(frozen=True, slots=True)
class DeviceNumber:
    """Major and minor number. As text it is `MAJOR:MINOR`, as sysfs, mountinfo and device-mapper tables write it."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> "DeviceNumber":
        """The number that a kernel file or table shows as `MAJOR:MINOR`. Raises `ValueError` for other text."""
        major, colon, minor = text.partition(":")
        if not colon or not _is_below(_MAJORS, major) or not _is_below(_MINORS, minor):
            raise ValueError(f"{text!r} is not a device number MAJOR:MINOR")
        return cls(int(major), int(minor))

    @classmethod
    def of_block_device(cls, status: os.stat_result) -> "DeviceNumber | None":
        """The number of the block device that was looked at; None when it was anything else."""
        if not stat.S_ISBLK(status.st_mode):
            return None
        return cls(os.major(status.st_rdev), os.minor(status.st_rdev))

    @property
    def combined(self) -> int:
        """Both in one integer, as system calls and udev take it."""
        return os.makedev(self.major, self.minor)

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


def _is_below(limit: int, text: str) -> bool:
    """Whether it is a number below `limit`, without zeroes in front, as the kernel writes it."""
    decimal = text.isascii() and text.isdigit() and len(text) <= len(str(limit))
    return decimal and str(int(text)) == text and int(text) < limit
