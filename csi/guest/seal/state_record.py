"""The state record of a sealed volume: 4 KiB that say, under a MAC, what the volume is and which generation the disk shows.

Layout (big-endian): magic 8 · kind u16 · profile u16 · key version u32 · generation u64 · payload bytes u64 ·
SHA-256 of the volume id 32 · SHA-256 of the header 32 · header MAC 32 · zeroes · record MAC 32 at 4064.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, assert_never

from csi.core.errors import Tampered
from csi.core.sealed import STATE_RECORD_BYTES, Profile
from csi.guest.seal.keys import VolumeKeys
from csi.guest.seal.profiles import unsealed

_MAGIC: Final = b"SLSTATE1"
_FIELDS: Final = struct.Struct(">8sHHIQQ32s32s32s")
_MAC_OFFSET: Final = STATE_RECORD_BYTES - 32
_HEADER_CONTEXT: Final = b"sealed-local/v1 header"
_NO_HASH: Final = bytes(32)


class RecordKind(IntEnum):
    """What a record says."""

    INTENT = 1
    """A format has begun by a guest that the register allowed to; nothing on the device is anybody's data yet."""
    ACTIVE = 2
    """The volume is formatted; header and generation as given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRecord:
    """One verified record."""

    kind: RecordKind
    profile: Profile
    key_version: int
    generation: int
    payload_bytes: int
    header_sha256: bytes = _NO_HASH
    header_mac: bytes = _NO_HASH


class SlotState(Enum):
    """What a record's place holds when it is not a verified record."""

    ABSENT = "absent"
    """Only zeroes."""
    INVALID = "invalid"
    """Bytes that don't verify: a torn write of ours, or somebody else's."""


Slot = StateRecord | SlotState


def encode(record: StateRecord, keys: VolumeKeys, volume_id: str) -> bytes:
    """The 4 KiB to write."""
    fields = _FIELDS.pack(
        _MAGIC,
        record.kind,
        _number(record.profile),
        record.key_version,
        record.generation,
        record.payload_bytes,
        hashlib.sha256(volume_id.encode()).digest(),
        record.header_sha256,
        record.header_mac,
    )
    body = fields.ljust(_MAC_OFFSET, b"\0")
    return body + _mac(body, keys)


def decode(raw: bytes, keys: VolumeKeys, volume_id: str) -> Slot:
    """What a slot holds. The MAC is checked over the raw bytes before any field is looked at."""
    if len(raw) != STATE_RECORD_BYTES:
        raise Tampered(f"a state record is {len(raw)} bytes long instead of {STATE_RECORD_BYTES}")
    if not raw.strip(b"\0"):
        return SlotState.ABSENT
    if not hmac.compare_digest(_mac(raw[:_MAC_OFFSET], keys), raw[_MAC_OFFSET:]):
        return SlotState.INVALID
    magic, kind, profile, key_version, generation, payload, volume, header, mac = _FIELDS.unpack_from(raw)
    known = {_number(sealed): sealed for sealed in Profile if sealed.is_sealed}
    of_this_volume = volume == hashlib.sha256(volume_id.encode()).digest()
    if magic != _MAGIC or kind not in set(RecordKind) or profile not in known or not of_this_volume:
        raise Tampered("a state record verifies, yet is of another format version or volume; use a newer guest")
    return StateRecord(
        kind=RecordKind(kind),
        profile=known[profile],
        key_version=key_version,
        generation=generation,
        payload_bytes=payload,
        header_sha256=header,
        header_mac=mac,
    )


def header_mac(header_sha256: bytes, header_bytes: int, keys: VolumeKeys) -> bytes:
    """The MAC of a header copy, made over its length and SHA-256, so that 16 MiB are read once and not twice."""
    message = _HEADER_CONTEXT + header_bytes.to_bytes(8, "big") + header_sha256
    return hmac.new(keys.header_mac.reveal(), message, hashlib.sha256).digest()


def require_header(record: StateRecord, header_sha256: bytes, header_bytes: int, keys: VolumeKeys) -> None:
    """Raises `Tampered` unless these are the digest and length of the header that the record was made for."""
    right = hmac.compare_digest(header_mac(header_sha256, header_bytes, keys), record.header_mac)
    if not right or not hmac.compare_digest(header_sha256, record.header_sha256):
        raise Tampered("the LUKS header is not the one that the volume's state record authenticates")


def _mac(body: bytes, keys: VolumeKeys) -> bytes:
    return hmac.new(keys.state_mac.reveal(), body, hashlib.sha256).digest()


def _number(profile: Profile) -> int:
    match profile:
        case Profile.XTS:
            return 1
        case Profile.NONE:
            raise unsealed()
        case _:
            assert_never(profile)
