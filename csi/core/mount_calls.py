"""Mounting by system calls, without a process. Numbers are from linux/mount.h.

A call lasts as long as the disk takes. What writes back, and may meet a disk that answers no more, goes by a program, whose
time is bounded: `csi.core.mounts`.
"""

import ctypes
import errno
import os
from collections.abc import Iterable

from csi.core import mount_options
from csi.core.errors import DiskFailed, InUse, ToolFailed

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, *, fstype: str, options: Iterable[str] = ()) -> None:
    """Mount `source`, a device or a name, on a directory.

    Raises `InUse` when another program or mapping has the device, or it is mounted in another way; `DiskFailed` when the
    disk answers with errors; `ToolFailed` else.
    """
    flags, data = mount_options.split(options)
    try:
        call(source, target, fstype, flags, data)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUse(
                f"{source} can't be mounted on {target}: it is in use by another program or mapping, or mounted elsewhere "
                "with another access mode; end that, then the call is repeated"
            ) from error
        if error.errno == errno.EIO:
            raise DiskFailed(source, f"can't be mounted on {target}", error) from error
        raise ToolFailed(
            f"{source} can't be mounted on {target} as {fstype}: {error.strerror}. A mount flag that the filesystem "
            "doesn't know, a wrong fs type and a bad superblock look like this; dmesg(1) may have more information"
        ) from error


def call(source: str | None, target: str, fstype: str | None, flags: int, data: str) -> None:
    """mount(2). Raises `OSError` naming the target."""
    texts = [os.fsencode(text) if text is not None else None for text in (source, target, fstype)]
    checked(_libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data)), target)


def umount(target: str, flags: int) -> None:
    """umount2(2). Raises `OSError` naming the target."""
    checked(_libc.umount2(os.fsencode(target), flags), target)


def numbered(number: int, *arguments: object, path: str) -> int:
    """A system call by its number. Raises `OSError` naming the path."""
    return checked(_libc.syscall(ctypes.c_long(number), *arguments), path)


def checked(result: int, path: str) -> int:
    """What a call returned. Raises `OSError` naming the path when that is less than 0."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result
