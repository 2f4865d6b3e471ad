"""A small firmware image with OVMF's table of GUIDs, TDX metadata and SEV metadata, and small EFI programs."""

import struct
import uuid
from collections.abc import Sequence

SIZE = 0x4000
TDX_SECTIONS = (
    # offset, bytes in the image, address, bytes of memory, kind, attributes
    (0x2000, 0x2000, 0xFFFFE000, 0x2000, 0, 1),
    (0x0000, 0x1000, 0xFFFFC000, 0x1000, 1, 0),
    (0, 0, 0x811000, 0xF000, 3, 0),
    (0, 0, 0x80B000, 0x2000, 3, 0),
    (0, 0, 0x809000, 0x2000, 2, 0),
    (0, 0, 0x800000, 0x6000, 3, 0),
    (0, 0, 0x900000, 0x1000, 4, 2),
)
"""With the addresses of the OVMF that the published measurements are of; the last one is accepted by the TD later."""
SNP_SECTIONS = ((0x800000, 0x2000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3), (0x80F000, 0x1000, 0x10))
HASHES_AT = 0x80FC00
RESET_EIP = 0x80B004
_TDX_AT, _SEV_AT = 0x3000, 0x3400


def image(
    tdx: Sequence[tuple[int, int, int, int, int, int]] = TDX_SECTIONS,
    snp: Sequence[tuple[int, int, int]] = SNP_SECTIONS,
    *,
    without: str = "",
) -> bytes:
    """The whole image; `without` is a GUID that its table does not have."""
    content = bytearray((index * 7 + index // 256) % 256 for index in range(SIZE))
    sections = b"".join(struct.pack("<IIQQII", *section) for section in tdx)
    descriptor = struct.pack("<4sIII", b"TDVF", 16 + len(sections), 1, len(tdx)) + sections
    content[_TDX_AT : _TDX_AT + len(descriptor)] = descriptor
    sections = b"".join(struct.pack("<III", *section) for section in snp)
    descriptor = struct.pack("<4sIII", b"ASEV", 16 + len(sections), 1, len(snp)) + sections
    content[_SEV_AT : _SEV_AT + len(descriptor)] = descriptor
    entries = {
        "e47a6535-984a-4798-865e-4685a7bf8ec2": struct.pack("<I", SIZE - _TDX_AT),
        "dc886566-984a-4798-a75e-5585a7bf67cc": struct.pack("<I", SIZE - _SEV_AT),
        "7255371f-3a3b-4b04-927b-1da6efa8d454": struct.pack("<II", HASHES_AT, 0x400),
        "00f771de-1a7e-4fcb-890e-68c77e2fb44e": struct.pack("<I", RESET_EIP),
    }
    table = b"".join(_entry(guid, data) for guid, data in entries.items() if guid != without)
    table += struct.pack("<H", len(table) + 18) + uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    content[-32 - len(table) : -32] = table
    return bytes(content)


def _entry(guid: str, data: bytes) -> bytes:
    return data + struct.pack("<H", len(data) + 18) + uuid.UUID(guid).bytes_le


def efi_program(
    body: bytes = b"kernel" * 90, *, wide: bool = True, signatures: bytes = b"", tail: bytes = b""
) -> bytes:
    """A PE image with one section, then `tail`, then `signatures`."""
    directories = 112 if wide else 96
    optional = bytearray(directories + 16 * 8)
    struct.pack_into("<H", optional, 0, 0x20B if wide else 0x10B)
    headers = 64 + 24 + len(optional) + 40
    struct.pack_into("<I", optional, 60, headers)
    struct.pack_into("<I", optional, 64, 0x12345678)
    struct.pack_into("<I", optional, directories - 4, 16)
    if signatures:
        struct.pack_into("<II", optional, directories + 32, headers + len(body) + len(tail), len(signatures))
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, len(optional), 0)
    section = struct.pack("<8sIIII16x", b".text", len(body), headers, len(body), headers)
    return dos + coff + bytes(optional) + section + body + tail + signatures
