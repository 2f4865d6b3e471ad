"""Bind mounts and unmounting by system calls, without a process.

A bind mount is read-only from its first moment: mount(8) binds first and makes it read-only by a second call, and killed
between the two it leaves a writable mount behind. Linux 5.12 and later offer that in one piece; on older kernels the mount
is made read-only at a hidden place and moved. Numbers are from linux/mount.h and the system call table that all
architectures share since 5.2.
"""

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from csi.core import mount_calls, mount_options, mounts
from csi.core.errors import InUse, ToolFailed

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_MOUNT_SETATTR: Final = 442
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_RDONLY: Final = 1
_MS_REMOUNT: Final = 1 << 5
_MS_BIND: Final = 1 << 12
_MS_MOVE: Final = 1 << 13
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 1 << 1
_UMOUNT_NOFOLLOW: Final = 1 << 3
_STATVFS_RELATIVE_ACCESS_TIMES: Final = 1 << 12
"""statvfs(3) has another number for this flag than mount(2); the others are the same."""
_KEPT: Final = (
    mount_options.NO_SUID
    | mount_options.NO_DEVICES
    | mount_options.NO_EXECUTION
    | mount_options.NO_ACCESS_TIMES
    | mount_options.NO_DIRECTORY_ACCESS_TIMES
)

_workshop_lock = threading.Lock()


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def unmount(target: str) -> None:
    """Unmount everything on exactly this path, whose parents hold no link. A path without mounts is fine.

    Raises `InUse` when something is busy, and `ToolFailed` when the kernel says no for another reason.
    """
    for _ in mounts.at(target):
        try:
            mount_calls.umount(target, _UMOUNT_NOFOLLOW)
        except OSError as error:
            if not mounts.at(target):
                return
            text = f"{target} can't be unmounted: {error.strerror}"
            if error.errno == errno.EBUSY:
                raise InUse(f"{text}. End the processes that use it; the call is then repeated.") from error
            raise ToolFailed(text) from error


def bind(source: str, target: str, *, read_only: bool, workshop: Path) -> None:
    """Show `source` at `target`, read-only from the first moment if wanted. Raises `OSError` naming the path.

    `workshop` is a directory of ours, used on kernels before 5.12 only.
    """
    try:
        _bind_in_one_piece(source, target, read_only=read_only)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        _bind_by_mount(source, target, read_only=read_only, workshop=workshop)


def _bind_in_one_piece(source: str, target: str, *, read_only: bool) -> None:
    tree = mount_calls.numbered(
        _OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH, path=source
    )
    try:
        if read_only:
            attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
            size = ctypes.sizeof(attributes)
            mount_calls.numbered(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size, path=source)
        mount_calls.numbered(
            _MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH, path=target
        )
    finally:
        os.close(tree)


def _bind_by_mount(source: str, target: str, *, read_only: bool, workshop: Path) -> None:
    if not read_only:
        mount_calls.call(source, target, None, _MS_BIND, "")
        return
    with _private_place(workshop) as place:
        mount_calls.call(source, place, None, _MS_BIND, "")
        mount_calls.call(None, place, None, _MS_REMOUNT | _MS_BIND | mount_options.READ_ONLY | _kept(place), "")
        mount_calls.call(place, target, None, _MS_MOVE, "")


@contextmanager
def _private_place(workshop: Path) -> Iterator[str]:
    """A directory in a mount of its own that no other namespace sees: only from there can a mount be moved, and what a kill
    leaves there is taken away by the next use.
    """
    with _workshop_lock:
        workshop.mkdir(mode=0o700, parents=True, exist_ok=True)
        here = os.path.realpath(workshop)
        _forget(here)
        mount_calls.call("sealed-local", here, "tmpfs", 0, "mode=0700,size=64k")
        try:
            mount_calls.call(None, here, None, _MS_PRIVATE, "")
            place = Path(here, "bind")
            place.mkdir()
            yield str(place)
        finally:
            _forget(here)


def _forget(here: str) -> None:
    for _ in mounts.at(here):
        with contextlib.suppress(OSError):
            mount_calls.umount(here, _MNT_DETACH | _UMOUNT_NOFOLLOW)


def _kept(place: str) -> int:
    """The flags that a mount has, as a remount wants them: those that it isn't told it would drop."""
    flags = os.statvfs(place).f_flag
    relative = mount_options.RELATIVE_ACCESS_TIMES if flags & _STATVFS_RELATIVE_ACCESS_TIMES else 0
    return flags & _KEPT | relative
