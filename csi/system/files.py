"""Files that must be whole at every moment: atomic replacement, and flushing of files and directories."""

import os
from pathlib import Path


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
