"""The state record of a sealed volume: 4 KiB that say, under a MAC, what the volume is and which open wrote it.

Layout (big-endian): magic 8 · kind u16 · profile u16 · key version u32 · sequence u64 · payload bytes u64 · SHA-256 of
the volume id 32 · SHA-256 of the header 32 · header MAC 32 · generation u64 · nonce of the announcement 32 · nonce of the
record that it follows 32 · 40 zeroes · register epoch 16 · zeroes · record MAC 32 at 4064.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Final, assert_never

from csi.core.errors import Tampered
from csi.core.sealed import STATE_RECORD_BYTES, Profile
from csi.guest.seal.keys import VolumeKeys
from csi.guest.seal.profiles import unsealed
from csi.kbs.disk_state import DiskState
from csi.kbs.register import Announcement

_MAGIC: Final = b"SLSTATE1"
_FIELDS: Final = struct.Struct(">8sHHIQQ32s32s32sQ32s32s40s16s")
_MAC_OFFSET: Final = STATE_RECORD_BYTES - 32
_HEADER_CONTEXT: Final = b"sealed-local/v1 header"
_NO_HASH: Final = bytes(32)
_NO_NONCE: Final = bytes(32)
_NO_EPOCH: Final = bytes(16)
_FIRST_SEQUENCE: Final = 1


def may_be_one(slot: bytes) -> bool:
    """Whether a slot shows what every record begins with. It proves nothing: anybody can write that."""
    return slot.startswith(_MAGIC)


class RecordKind(IntEnum):
    """What a record says."""

    INTENT = 1
    """A format has begun by a guest that the register allowed to; nothing on the device is anybody's data yet."""
    OPEN = 2
    """The volume is formatted, and was opened for writing under the announcement given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRecord:
    """One verified record. An intent has sequence 0 and nothing from `header_sha256` on, so that each one is the same
    bytes: tearing the write of a second one over a first changes nothing.
    """

    kind: RecordKind
    profile: Profile
    key_version: int
    sequence: int
    """Counts the records of one disk; a record lies in slot `sequence % 2`, never over the one that it follows."""
    payload_bytes: int
    header_sha256: bytes = _NO_HASH
    header_mac: bytes = _NO_HASH
    generation: int = 0
    nonce: bytes = _NO_NONCE
    follows: bytes = _NO_NONCE
    """The nonce of the record that this one follows; zero in the first."""
    epoch: bytes = _NO_EPOCH

    @property
    def announcement(self) -> Announcement:
        """Under what it was written, to be compared with what the register knows. Of an open record only."""
        return Announcement(generation=self.generation, nonce=self.nonce.hex(), epoch=self.epoch.hex())

    @property
    def state(self) -> DiskState:
        """What a person may be asked to accept. Of an open record only."""
        return DiskState(
            announcement=self.announcement,
            header_sha256=self.header_sha256.hex(),
            payload_bytes=self.payload_bytes,
        )


def intent(profile: Profile, key_version: int, payload_bytes: int) -> StateRecord:
    """The record of a format that begins."""
    return StateRecord(
        kind=RecordKind.INTENT, profile=profile, key_version=key_version, sequence=0, payload_bytes=payload_bytes
    )


def opened(begun: StateRecord, header_sha256: bytes, header_mac: bytes, announced: Announcement) -> StateRecord:
    """The first record of a formatted volume."""
    return rebuilt(begun, header_sha256, header_mac, announced, sequence=_FIRST_SEQUENCE)


def rebuilt(
    begun: StateRecord, header_sha256: bytes, header_mac: bytes, announced: Announcement, *, sequence: int
) -> StateRecord:
    """A record that follows none: the first one, or one in the place of others that can't be read."""
    named = replace(begun, header_sha256=header_sha256, header_mac=header_mac)
    return _under(replace(named, kind=RecordKind.OPEN, sequence=sequence), announced)


def following(found: StateRecord, announced: Announcement) -> StateRecord:
    """The record of the next open for writing."""
    return _under(replace(found, sequence=found.sequence + 1, follows=found.nonce), announced)


def _under(record: StateRecord, announced: Announcement) -> StateRecord:
    nonce, epoch = bytes.fromhex(announced.nonce), bytes.fromhex(announced.epoch)
    return replace(record, generation=announced.generation, nonce=nonce, epoch=epoch)


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
        record.sequence,
        record.payload_bytes,
        hashlib.sha256(volume_id.encode()).digest(),
        record.header_sha256,
        record.header_mac,
        record.generation,
        record.nonce,
        record.follows,
        bytes(40),
        record.epoch,
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
    record = _parse(raw, volume_id)
    # Whatever else the bytes say is a meaning that this version doesn't know.
    if record is None or encode(record, keys, volume_id) != raw or not _is_sensible(record):
        raise Tampered("a state record verifies, yet is of another format version or volume; use a newer guest")
    return record


def _parse(raw: bytes, volume_id: str) -> StateRecord | None:
    """The named fields; None for a magic, kind, profile or volume that is not known here."""
    magic, kind, profile, key_version, sequence, payload, volume, digest, mac, *identity = _FIELDS.unpack_from(raw)
    generation, nonce, follows, _, epoch = identity
    known = {_number(sealed): sealed for sealed in Profile if sealed.is_sealed}
    of_this_volume = volume == hashlib.sha256(volume_id.encode()).digest()
    if magic != _MAGIC or kind not in set(RecordKind) or profile not in known or not of_this_volume:
        return None
    return StateRecord(
        kind=RecordKind(kind),
        profile=known[profile],
        key_version=key_version,
        sequence=sequence,
        payload_bytes=payload,
        header_sha256=digest,
        header_mac=mac,
        generation=generation,
        nonce=nonce,
        follows=follows,
        epoch=epoch,
    )


def _is_sensible(record: StateRecord) -> bool:
    if record.kind is RecordKind.INTENT:
        return record == intent(record.profile, record.key_version, record.payload_bytes)
    return record.generation >= 1 and record.sequence >= _FIRST_SEQUENCE and record.nonce != _NO_NONCE


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
