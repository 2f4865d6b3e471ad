"""Looking at long spans of memory piece by piece. A copy of a whole span of 16 MiB is fresh memory that the kernel has to
clear, page by page, and took longer than all cryptography of an open.
"""

from collections.abc import Iterator
from typing import Final

_PIECE_BYTES: Final = 64 * 1024


def equal(one: bytes | memoryview, other: bytes | memoryview) -> bool:
    """Whether both hold the same bytes. Not for secrets: it ends at the first difference."""
    return len(one) == len(other) and all(a == b for a, b in zip(_pieces(one), _pieces(other), strict=True))


def is_zero(span: bytes | memoryview) -> bool:
    """Whether it holds nothing but zeroes."""
    zeroes = bytes(_PIECE_BYTES)
    return all(piece == zeroes[: len(piece)] for piece in _pieces(span))


def _pieces(span: bytes | memoryview) -> Iterator[bytes]:
    """Bytes and not views: those of memory are compared one by one."""
    view = memoryview(span)
    return (bytes(view[start : start + _PIECE_BYTES]) for start in range(0, len(view), _PIECE_BYTES))
