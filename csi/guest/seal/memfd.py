"""Files that exist in this process's memory only: the private copy of a header that tools get instead of the device."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@contextmanager
def sealed(content: bytes | memoryview, size_bytes: int = 0) -> Iterator[int]:
    """A descriptor of memory with this content that nobody, cryptsetup's auto-repair included, can change any more. It is
    followed by zeroes up to `size_bytes`, which take no memory.
    """
    with writable(max(size_bytes, len(content))) as descriptor:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        yield descriptor


@contextmanager
def writable(size_bytes: int) -> Iterator[int]:
    """A descriptor of zeroed memory of that size, for commands that make a header."""
    descriptor = os.memfd_create("sealed-local", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        yield descriptor
    finally:
        os.close(descriptor)


def path_of(descriptor: int) -> str:
    """The path under which a child that inherits the descriptor finds it. /dev/fd is missing in a guest without udev."""
    return f"/proc/self/fd/{descriptor}"
