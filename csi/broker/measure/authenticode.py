"""The digest by which UEFI firmware measures a program: Authenticode of a PE image.

Microsoft, "Windows Authenticode Portable Executable Signature Format": the file without its checksum, without the entry of
its signatures, and without the signatures themselves, which are its last bytes.
"""

import hashlib
from typing import Final

from csi.broker.measure.fields import Fields
from csi.core.errors import InvalidInput

_PE_SIGNATURE: Final = int.from_bytes(b"PE\0\0", "little")
_OPTIONAL_HEADER: Final = 24
"""From the PE signature: 4 bytes of it, 20 of the COFF header."""
_CHECKSUM: Final = 64
_DIRECTORIES: Final = {0x10B: 96, 0x20B: 112}
"""Where the table of directories begins in an optional header, by its magic number: 32 and 64 bit."""
_SECURITY_DIRECTORY: Final = 4
_DIRECTORY_BYTES: Final = 8
_ALIGNMENT: Final = 8


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
    signatures, size = fields.u32(security), fields.u32(security + 4)
    end = len(image)
    if size:
        # Firmware hashes what comes after the sections up to the signatures; anywhere else two readers could disagree.
        if signatures + size != end or signatures < security + _DIRECTORY_BYTES:
            raise InvalidInput(name, "its signatures are not its last bytes")
        end = signatures
    body = image[:checksum] + image[checksum + 4 : security] + image[security + _DIRECTORY_BYTES : end]
    return hashlib.sha384(body + bytes(-end % _ALIGNMENT)).digest()
