"""Numbers and stretches of a binary file, each read only where the file really has it."""

import struct
from dataclasses import dataclass

from csi.core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """A file's bytes with its name for errors. All numbers are little-endian."""

    content: bytes
    name: str

    def part(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`; raises `InvalidInput` where the file is shorter."""
        if start < 0 or size < 0 or start + size > len(self.content):
            raise InvalidInput(self.name, f"has no {size} bytes at {start}; it is cut off or of another kind")
        return self.content[start : start + size]

    def u16(self, start: int) -> int:
        """The 2-byte number at `start`."""
        return int.from_bytes(self.part(start, 2), "little")

    def u32(self, start: int) -> int:
        """The 4-byte number at `start`."""
        return int.from_bytes(self.part(start, 4), "little")

    def unpack(self, layout: struct.Struct, start: int) -> tuple[int, ...]:
        """The numbers of `layout` at `start`."""
        return layout.unpack(self.part(start, layout.size))
