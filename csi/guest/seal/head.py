"""The head of a sealed device in this guest's memory: the places of the format in it. Parses nothing.

Almost all of it is zero, which is looked at MiB by MiB as it is read. Kept is only what may be something else: memory for
all 34 MiB took longer to get from the kernel, page by page, than everything else that an open does.
"""

from dataclasses import dataclass
from typing import Self

from csi.core import spans
from csi.core.device_number import DeviceNumber
from csi.core.sealed import (
    HEADER_A_OFFSET,
    HEADER_B_OFFSET,
    HEADER_BYTES,
    HEADER_PARTS_BYTES,
    STATE_RECORD_BYTES,
    STATE_RECORD_OFFSETS,
)
from csi.core.size import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A MiB of the head: what the format has at its start, and whether everything behind that is zero."""

    kept: bytes
    rest_is_zero: bool

    @classmethod
    def of(cls, content: memoryview, offset: int) -> Self:
        """From the whole MiB at that offset of the device."""
        size = _kept_bytes(offset, len(content))
        return cls(kept=bytes(content[:size]), rest_is_zero=spans.is_zero(content[size:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The first 34 MiB and the last MiB of a device, read once. `pieces` are in the order of the disk."""

    device: str
    number: DeviceNumber
    device_bytes: int
    pieces: tuple[Piece, ...]
    tail_is_zero: bool

    def header_a(self) -> bytes:
        """The parts of header copy A; empty when there is anything behind them, so that no such copy is ever used."""
        return self._header(HEADER_A_OFFSET)

    def header_b(self) -> bytes:
        """The same of header copy B."""
        return self._header(HEADER_B_OFFSET)

    def slots(self) -> tuple[bytes, bytes]:
        """The two state records."""
        first, second = (self.pieces[offset // MIB].kept for offset in STATE_RECORD_OFFSETS)
        return first, second

    def zero_but_slots(self) -> bool:
        """Whether everything that was read, the two records apart, is zero."""
        records = {offset // MIB for offset in STATE_RECORD_OFFSETS}
        others = (piece.kept for number, piece in enumerate(self.pieces) if number not in records)
        return (
            self.tail_is_zero and all(piece.rest_is_zero for piece in self.pieces) and all(map(spans.is_zero, others))
        )

    def _header(self, offset: int) -> bytes:
        copy = self.pieces[offset // MIB : (offset + HEADER_BYTES) // MIB]
        return b"".join(piece.kept for piece in copy) if all(piece.rest_is_zero for piece in copy) else b""


def _kept_bytes(offset: int, length: int) -> int:
    """How much of so many bytes at an offset belongs to something that the format has there."""
    headers = ((start, HEADER_PARTS_BYTES) for start in (HEADER_A_OFFSET, HEADER_B_OFFSET))
    records = ((start, STATE_RECORD_BYTES) for start in STATE_RECORD_OFFSETS)
    for start, size in (*headers, *records):
        if start <= offset < start + size:
            return min(start + size - offset, length)
    return 0
