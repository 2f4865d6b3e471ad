"""Files that must be whole at every moment: atomic replacement, flushing of files and directories, locks by name."""

import errno
import fcntl
import hashlib
import os
import struct
from pathlib import Path
from typing import Final

_FLOCK: Final = struct.Struct("@hhqqi4x")
"""struct flock of Linux on 64-bit machines: type, whence, start, length, process."""

_OUT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def raise_if_blind(error: OSError) -> None:
    """Raises the error again when it tells of this process, which can open nothing now, and not of what it looked at: that
    is not known to be absent then.
    """
    if error.errno in _OUT_OF:
        raise error


def write_atomic(path: Path, content: bytes, *, mode: int, temporary: Path, durable: bool = True) -> None:
    """Put `content` at `path` so that a reader sees the old bytes or all the new ones.

    `temporary` must lie on the same filesystem; a leftover one of an earlier crash is overwritten. `durable` flushes
    the file and its directory; on a tmpfs that is useless and may be left out.
    """
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(descriptor, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    if durable:
        flush_directory(path.parent)


def flush_directory(path: Path) -> None:
    """Make names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_named_lock(path: Path, name: str) -> int | None:
    """Lock `name` among all processes that use the file `path`, whose content doesn't matter; None when another has it.

    The answer is a descriptor that holds the lock until it is closed, which the kernel does for a killed process. Each name
    is one byte of the file, by its hash, so that nothing has to be removed afterwards (fcntl(2), open file description
    locks). Two names may share a byte, one time in 2 to the 62: then one of them waits in vain for a while.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 2
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError | PermissionError):
            return None
        raise
    return descriptor
