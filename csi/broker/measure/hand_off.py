"""RTMR0 of a TD under QEMU: memory map, configuration volume, Secure Boot's variables, ACPI tables, boot entries.

It follows from the virtual machine's shape and changes with every device that is added, so a policy may leave it out.
"""

import hashlib
import struct
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from csi.broker.measure.tdvf import Section, SectionKind
from csi.core.errors import InvalidInput

_GLOBAL_VARIABLE: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_SECURITY_DATABASE: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
_VARIABLES: Final = (
    (_GLOBAL_VARIABLE, "SecureBoot"),
    (_GLOBAL_VARIABLE, "PK"),
    (_GLOBAL_VARIABLE, "KEK"),
    (_SECURITY_DATABASE, "db"),
    (_SECURITY_DATABASE, "dbx"),
)
_SEPARATOR: Final = bytes(4)
_BOOT_ORDER: Final = bytes(2)
"""One entry, number 0: the firmware's own menu, which stands there when no disk is to be booted."""
_FIRMWARE_VOLUME: Final = uuid.UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1").bytes_le
_MENU_FILE: Final = uuid.UUID("462caa21-7614-4503-836e-8ab6f4662331").bytes_le
_HAND_OFF: Final = struct.Struct("<HHI II 4Q Q")
_RESOURCE: Final = struct.Struct("<HHI 16s II QQ")
_ACCEPTED, _UNACCEPTED = 0, 7
_PRESENT_INITIALISED_TESTED: Final = 7
_END_BYTES: Final = 8
_SPLIT_FROM_BYTES: Final = 0xB0000000
_LOW_MEMORY_BYTES: Final = 0x80000000
"""QEMU's q35 with that much memory or more keeps so much of it below 4 GiB."""
_FOUR_GIB: Final = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine:
    """A q35 machine without disks that the firmware could boot; tables as QEMU gives them to the firmware (fw_cfg)."""

    memory_bytes: int
    acpi_loader: bytes
    acpi_rsdp: bytes
    acpi_tables: bytes


def platform_events(sections: tuple[Section, ...], machine: VirtualMachine, name: str) -> Iterator[bytes]:
    """Digests of RTMR0 in their order. Raises `InvalidInput` for firmware that has no place for what it is handed."""
    yield _digest(hand_off_blocks(sections, machine.memory_bytes, name))
    yield _digest(_one(sections, SectionKind.CONFIGURATION, name).content)
    for vendor, variable in _VARIABLES:
        yield _digest(variable_event(vendor, variable))
    for event in (_SEPARATOR, machine.acpi_loader, machine.acpi_rsdp, machine.acpi_tables, _BOOT_ORDER, boot_entry()):
        yield _digest(event)


def hand_off_blocks(sections: tuple[Section, ...], memory_bytes: int, name: str) -> bytes:
    """The list of blocks by which QEMU tells the TD its memory, up to the one that ends it, which is not measured."""
    blocks = b"".join(
        _RESOURCE.pack(3, _RESOURCE.size, 0, bytes(16), kind, _PRESENT_INITIALISED_TESTED, start, end - start)
        for kind, start, end in _ranges(sections, memory_bytes, name)
    )
    address = _one(sections, SectionKind.HAND_OFF, name).address
    end = address + _HAND_OFF.size + len(blocks) + _END_BYTES
    return _HAND_OFF.pack(1, _HAND_OFF.size, 0, 9, 0, 0, 0, 0, 0, end) + blocks


def variable_event(vendor: bytes, name: str) -> bytes:
    """The event of a variable that is not set."""
    return vendor + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le")


def boot_entry() -> bytes:
    """The variable Boot0000: an active, hidden application of the firmware, named by its volume and its file."""
    path = struct.pack("<BBH", 4, 7, 20) + _FIRMWARE_VOLUME + struct.pack("<BBH", 4, 6, 20) + _MENU_FILE
    path += struct.pack("<BBH", 0x7F, 0xFF, 4)
    return struct.pack("<IH", 0x109, len(path)) + "UiApp\0".encode("utf-16-le") + path


def _ranges(sections: Iterable[Section], memory_bytes: int, name: str) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of each stretch of memory."""
    low = _LOW_MEMORY_BYTES if memory_bytes >= _SPLIT_FROM_BYTES else memory_bytes
    position = 0
    kinds = (SectionKind.HAND_OFF, SectionKind.TEMPORARY_MEMORY)
    for section in sorted((one for one in sections if one.kind in kinds), key=lambda one: one.address):
        end = section.address + section.memory_bytes
        if section.address < position or end > low:
            raise InvalidInput(name, f"the section at {section.address:#x} is outside a memory of {memory_bytes} bytes")
        if position < section.address:
            yield _UNACCEPTED, position, section.address
        yield _ACCEPTED, section.address, end
        position = end
    if position < low:
        yield _UNACCEPTED, position, low
    if low < memory_bytes:
        yield _UNACCEPTED, _FOUR_GIB, _FOUR_GIB + memory_bytes - low


def _one(sections: Iterable[Section], kind: SectionKind, name: str) -> Section:
    found = [section for section in sections if section.kind == kind]
    if len(found) != 1:
        raise InvalidInput(name, f"has {len(found)} sections of kind {kind.name}, not one")
    return found[0]


def _digest(event: bytes) -> bytes:
    return hashlib.sha384(event).digest()
