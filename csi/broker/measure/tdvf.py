"""The part of a firmware image that says how a TD's first memory is laid out.

Intel, "TDX Virtual Firmware Design Guide", chapter 11: a table of GUIDs ends 32 bytes before the image's end; one
entry holds the distance of the descriptor from the end; the descriptor lists the sections.
"""

import enum
import struct
import uuid
from dataclasses import dataclass
from typing import Final

from csi.broker.measure.fields import Fields
from csi.core.errors import InvalidInput

PAGE_BYTES: Final = 4096
_FOOTER: Final = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
_TDX_METADATA: Final = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
_AFTER_FOOTER_BYTES: Final = 32
_ENTRY_BYTES: Final = 18
"""An entry ends with its own length, 2 bytes, and its GUID."""
_DESCRIPTOR: Final = struct.Struct("<IIII")
_SIGNATURE: Final = int.from_bytes(b"TDVF", "little")
_SECTION: Final = struct.Struct("<IIQQII")
_MOST_MEMORY_BYTES: Final = 64 * 1024 * 1024
"""Of all sections together. Their pages are hashed one by one; made-up sizes must not keep the command busy for days."""
_END_OF_MEMORY: Final = 1 << 52
"""No TD's memory has a higher address."""


class SectionKind(enum.IntEnum):
    """What a section is for, as far as a measurement asks."""

    CONFIGURATION = 1
    HAND_OFF = 2
    TEMPORARY_MEMORY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A stretch of the TD's memory. `content` is shorter than the memory where the rest is zero and unmeasured."""

    kind: int
    address: int
    memory_bytes: int
    content: bytes
    measured: bool
    added: bool
    """Not `added`: the host gives these pages later and the TD accepts them; they are no part of MRTD."""


def sections(firmware: bytes, name: str) -> tuple[Section, ...]:
    """The sections in the order in which the host adds them. Raises `InvalidInput` for an image that is not of a TD."""
    fields = Fields(content=firmware, name=name)
    start = len(firmware) - _distance(fields)
    signature, _, version, count = fields.unpack(_DESCRIPTOR, start)
    if signature != _SIGNATURE or version != 1:
        raise InvalidInput(name, "its TDX metadata are not of version 1")
    found, added = [], 0
    for index in range(count):
        section = _section(fields, start + _DESCRIPTOR.size + _SECTION.size * index)
        found.append(section)
        added += section.memory_bytes if section.added else 0
        if added > _MOST_MEMORY_BYTES:
            raise InvalidInput(name, f"its sections have more than {_MOST_MEMORY_BYTES} bytes; no firmware is so large")
    return tuple(found)


def _distance(fields: Fields) -> int:
    """How many bytes before the image's end the descriptor begins."""
    end = len(fields.content) - _AFTER_FOOTER_BYTES
    if fields.part(end - 16, 16) != _FOOTER:
        raise InvalidInput(fields.name, "ends without OVMF's table of GUIDs; is it the whole firmware, code part last?")
    lowest = end - fields.u16(end - _ENTRY_BYTES)
    end -= _ENTRY_BYTES
    while end - _ENTRY_BYTES >= lowest:
        size = fields.u16(end - _ENTRY_BYTES)
        if fields.part(end - 16, 16) == _TDX_METADATA:
            return fields.u32(end - _ENTRY_BYTES - 4)
        if size < _ENTRY_BYTES:
            raise InvalidInput(fields.name, "its table of GUIDs has an entry without a length")
        end -= size
    raise InvalidInput(fields.name, "is firmware without TDX metadata")


def _section(fields: Fields, start: int) -> Section:
    offset, size, address, memory_bytes, kind, attributes = fields.unpack(_SECTION, start)
    measured, added = bool(attributes & 1), not attributes & 2
    if address % PAGE_BYTES or memory_bytes % PAGE_BYTES or size > memory_bytes:
        raise InvalidInput(fields.name, f"the section at {address:#x} is not whole pages")
    if address + memory_bytes > _END_OF_MEMORY:
        raise InvalidInput(fields.name, f"the section at {address:#x} ends where no memory can be")
    if measured and (size < memory_bytes or not added):
        raise InvalidInput(fields.name, f"the section at {address:#x} is to be measured and has no content")
    if size and not added:
        raise InvalidInput(fields.name, f"the section at {address:#x} has content and is not added")
    content = fields.part(offset, size) if size else b""
    return Section(
        kind=kind, address=address, memory_bytes=memory_bytes, content=content, measured=measured, added=added
    )
