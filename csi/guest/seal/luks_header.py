"""The strict allow-list over one 16 MiB LUKS2 header: exactly what its profile writes, and nothing else.

The caller has verified the bytes by MAC; this check stands on its own all the same, so that a header that we ourselves were
made to write in another way would be refused, too. It reads, it never repairs, and it echoes nothing that is not bounded.
It does no I/O, opens no keyslot and doesn't look at the keyslot: those bytes are random, and only the MAC covers them. What
is behind the one keyslot must be zero.
"""

import base64
import hashlib
import json
import struct
from typing import Any, Final, assert_never

from csi.core import spans
from csi.core.errors import Tampered
from csi.core.sealed import HEADER_BYTES, HEADER_PARTS_BYTES, PAYLOAD_OFFSET, Profile
from csi.guest.seal.profiles import unsealed

_COPY_BYTES: Final = 16384
_BINARY_BYTES: Final = 4096
_MAGICS: Final = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
# magic, version, hdr_size, seqid, label, checksum algorithm, salt, uuid, subsystem, hdr_offset, padding, checksum
_BINARY: Final = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
_CHECKSUM_OFFSET: Final = 448
_RANDOM_BYTES: Final = 32

_KEYSLOT: Final = {
    "type": "luks2",
    "key_size": 64,
    "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
    "area": {"type": "raw", "offset": "32768", "size": "258048", "encryption": "aes-xts-plain64", "key_size": 64},
    "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": None},
}
_XTS: Final[dict[str, Any]] = {
    "keyslots": {"0": _KEYSLOT},
    "tokens": {},
    "segments": {
        "0": {
            "type": "crypt",
            "offset": str(PAYLOAD_OFFSET),
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": "aes-xts-plain64",
            "sector_size": 4096,
        }
    },
    "digests": {
        "0": {
            "type": "pbkdf2",
            "keyslots": ["0"],
            "segments": ["0"],
            "hash": "sha256",
            "iterations": 1000,
            "salt": None,
            "digest": None,
        }
    },
    "config": {"json_size": "12288", "keyslots_size": "16744448"},
}
"""The whole JSON area of `xts`. None stands for 32 random bytes in base64; all else must be equal, type included."""


def check(header: bytes, profile: Profile, *, uuid: str) -> None:
    """Raises `Tampered` unless `header` is one header copy of this profile with this UUID, or the parts of one."""
    if len(header) not in (HEADER_PARTS_BYTES, HEADER_BYTES):
        raise Tampered(f"a LUKS header copy is {len(header)} bytes long instead of {HEADER_BYTES}")
    if not spans.is_zero(memoryview(header)[HEADER_PARTS_BYTES:]):
        raise Tampered(f"the LUKS header has something behind its keyslot, from {HEADER_PARTS_BYTES} on")
    copies = (bytes(header[:_COPY_BYTES]), bytes(header[_COPY_BYTES : 2 * _COPY_BYTES]))
    sequences = [
        _check_binary(copy, magic, number * _COPY_BYTES, uuid)
        for number, (copy, magic) in enumerate(zip(copies, _MAGICS, strict=True))
    ]
    if sequences[0] != sequences[1]:
        raise Tampered("the two LUKS headers have different sequence numbers")
    if copies[0][_BINARY_BYTES:] != copies[1][_BINARY_BYTES:]:
        raise Tampered("the two LUKS headers hold different JSON")
    _check_json(copies[0][_BINARY_BYTES:], _document(profile))


def _check_binary(copy: bytes, magic: bytes, offset: int, uuid: str) -> int:
    fields = _BINARY.unpack_from(copy)
    seqid = int(fields[3])
    wanted = {
        "magic": (fields[0], magic),
        "version": (fields[1], 2),
        "size": (fields[2], _COPY_BYTES),
        "label": (fields[4], bytes(48)),
        "checksum algorithm": (fields[5], b"sha256".ljust(32, b"\0")),
        "UUID": (fields[7], uuid.encode().ljust(40, b"\0")),
        "subsystem": (fields[8], bytes(48)),
        "offset": (fields[9], offset),
        "padding": (fields[10], bytes(184)),
        "end": (copy[_BINARY.size : _BINARY_BYTES], bytes(_BINARY_BYTES - _BINARY.size)),
    }
    for name, (found, right) in wanted.items():
        if found != right:
            raise Tampered(f"the LUKS header at {offset} has a wrong {name}: {_short(found)}")
    blanked = copy[:_CHECKSUM_OFFSET] + bytes(64) + copy[_CHECKSUM_OFFSET + 64 :]
    if fields[11] != hashlib.sha256(blanked).digest().ljust(64, b"\0"):
        raise Tampered(f"the LUKS header at {offset} has a wrong checksum")
    return seqid


def _document(profile: Profile) -> dict[str, Any]:
    match profile:
        case Profile.XTS:
            return _XTS
        case Profile.NONE:
            raise unsealed()
        case _:
            assert_never(profile)


def _check_json(area: bytes, wanted: dict[str, Any]) -> None:
    text, end, rest = area.partition(b"\0")
    if not end or rest.strip(b"\0"):
        raise Tampered("the LUKS JSON area does not end in zeroes")
    try:
        document = json.loads(text.decode("ascii"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Tampered(f"the LUKS JSON can't be read: {str(error)[:60]}") from error
    _compare(document, wanted, "header")


def _compare(found: Any, wanted: Any, place: str) -> None:
    """Equal in value and type at every place; a dictionary has exactly the wanted keys."""
    if wanted is None:
        _check_random(found, place)
        return
    if type(found) is not type(wanted):
        raise Tampered(f"LUKS JSON: {place} is {_short(found)}, not of the profile's type")
    if isinstance(wanted, dict):
        different = set(found) ^ set(wanted)
        if different:
            raise Tampered(f"LUKS JSON: {place} has or lacks {_short(min(different))}")
        for key, value in wanted.items():
            _compare(found[key], value, f"{place}.{key}")
    elif found != wanted:
        raise Tampered(f"LUKS JSON: {place} is {_short(found)} instead of {wanted!r}")


def _check_random(found: Any, place: str) -> None:
    """The one spelling of 32 bytes: stray bits before the padding would be a second header text with the same meaning."""
    try:
        value = base64.b64decode(found, validate=True) if isinstance(found, str) else b""
    except ValueError:  # also for text that isn't ASCII, which isn't a binascii.Error
        value = b""
    if len(value) != _RANDOM_BYTES or base64.b64encode(value).decode() != found:
        raise Tampered(f"LUKS JSON: {place} is not base64 of {_RANDOM_BYTES} bytes")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of duplicate keys cryptsetup takes the last, another parser the first; neither may decide."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _short(value: object) -> str:
    """For messages. Nested values go by their type: writing them out would recurse as deep as the host nested them."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
