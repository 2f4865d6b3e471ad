"""A bind mount that is read-only from its first moment, by the kernel's newer mount calls (Linux 5.12 and later).

mount(8) binds first and makes it read-only by a second call; killed between the two it leaves a writable mount behind.
Numbers are from linux/mount.h and the system call table that all architectures share since 5.2.
"""

import ctypes
import os
from typing import Final

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_MOUNT_SETATTR: Final = 442
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_RDONLY: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def bind(source: str, target: str, *, read_only: bool) -> None:
    """Show `source` at `target` in one step. Raises `OSError` naming the target."""
    tree = _call(
        _OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH, path=source
    )
    try:
        if read_only:
            attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
            size = ctypes.sizeof(attributes)
            _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size, path=source)
        _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH, path=target)
    finally:
        os.close(tree)


def _call(number: int, *arguments: object, path: str) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result
