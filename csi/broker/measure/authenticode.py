"""The digest by which UEFI firmware measures a program: Authenticode of a PE image, as EDK2 computes it.

Microsoft, "Windows Authenticode Portable Executable Signature Format": the file without its checksum, without the entry of
its signatures, and without the signatures themselves, which are its last bytes. Whoever signs a file fills it up to 8 bytes
first; firmware (EDK2, SecurityPkg, MeasureBootPeCoff.c) hashes a file that nobody signed as it is.
"""

import hashlib
from typing import Final

from csi.broker.measure.fields import Fields
from csi.core.errors import InvalidInput

_PE_SIGNATURE: Final = int.from_bytes(b"PE\0\0", "little")
_SECTION_COUNT: Final = 6
_OPTIONAL_HEADER_BYTES: Final = 20
_OPTIONAL_HEADER: Final = 24
"""From the PE signature: 4 bytes of it, 20 of the COFF header."""
_HEADERS_BYTES: Final = 60
_CHECKSUM: Final = 64
_DIRECTORIES: Final = {0x10B: 96, 0x20B: 112}
"""Where the directories begin in an optional header, by its magic number (32, 64 bit). Their count stands before them."""
_SECURITY_DIRECTORY: Final = 4
_DIRECTORY_BYTES: Final = 8
_SECTION_BYTES: Final = 40
_SECTION_SIZE, _SECTION_START = 16, 20


def sha384(image: bytes, name: str) -> bytes:
    """Raises `InvalidInput` for a file that is no PE image, for example a kernel without an EFI stub."""
    fields = Fields(content=image, name=name)
    start = fields.u32(0x3C)
    if image[:2] != b"MZ" or fields.u32(start) != _PE_SIGNATURE:
        raise InvalidInput(name, "is not an EFI program; a kernel needs CONFIG_EFI_STUB")
    optional = start + _OPTIONAL_HEADER
    directories = _DIRECTORIES.get(fields.u16(optional))
    if directories is None:
        raise InvalidInput(name, "is a PE image neither of 32 nor of 64 bit")
    checksum = optional + _CHECKSUM
    security = optional + directories + _SECURITY_DIRECTORY * _DIRECTORY_BYTES
    if fields.u32(optional + directories - 4) <= _SECURITY_DIRECTORY:
        raise InvalidInput(name, "has no entry for signatures, as every EFI program that a linker made has")
    headers = fields.u32(optional + _HEADERS_BYTES)
    end = _end(fields, security)
    if headers < security + _DIRECTORY_BYTES or _sections_end(fields, start, headers) > end:
        raise InvalidInput(name, "its headers and sections are not what comes before its signatures")
    body = image[:checksum] + image[checksum + 4 : security] + image[security + _DIRECTORY_BYTES : end]
    return hashlib.sha384(body).digest()


def _end(fields: Fields, security: int) -> int:
    """Where the signatures begin, or the file ends."""
    signatures, size = fields.u32(security), fields.u32(security + 4)
    end = len(fields.content)
    if not size:
        return end
    # Firmware leaves as many bytes out at the end as the signatures have, wherever they are said to begin.
    if signatures + size != end:
        raise InvalidInput(fields.name, "its signatures are not its last bytes")
    return signatures


def _sections_end(fields: Fields, start: int, headers: int) -> int:
    """Firmware hashes one section after the other, and then what is left from there: the whole, where no gap is between."""
    table = start + _OPTIONAL_HEADER + fields.u16(start + _OPTIONAL_HEADER_BYTES)
    found = []
    for index in range(fields.u16(start + _SECTION_COUNT)):
        entry = table + index * _SECTION_BYTES
        found.append((fields.u32(entry + _SECTION_START), fields.u32(entry + _SECTION_SIZE)))
    end = headers
    for first, size in sorted(one for one in found if one[1]):
        if first != end:
            raise InvalidInput(fields.name, "its sections leave gaps, which firmware does not measure, or overlap")
        end += size
    return end
