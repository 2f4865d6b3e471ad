"""The state record: its MAC is right over every byte, or it says nothing at all."""

import hashlib
import hmac
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi.core.errors import Tampered
from csi.core.sealed import HEADER_BYTES, STATE_RECORD_BYTES, Profile
from csi.core.secret import Secret
from csi.guest.seal import keys, state_record
from csi.guest.seal.state_record import RecordKind, SlotState, StateRecord
from csi.kbs.register import Announcement
from tests.unit.test_keys import published

VOLUME = "pvc-1"
KEYS = keys.derive(Secret(bytes(range(32))), VOLUME, 1)
OTHER_KEYS = keys.derive(Secret(bytes(range(32))), "pvc-2", 1)
INTENT = StateRecord(kind=RecordKind.INTENT, profile=Profile.XTS, key_version=1, sequence=0, payload_bytes=67_108_864)
DIGEST = hashlib.sha256(b"header").digest()
FIRST = state_record.opened(
    INTENT,
    DIGEST,
    state_record.header_mac(DIGEST, HEADER_BYTES, KEYS),
    Announcement(generation=1, nonce="a1" * 32, epoch="e0" * 16),
)
OPENED = state_record.following(FIRST, Announcement(generation=7, nonce="b2" * 32, epoch="e1" * 16))
OPENED_OF_THE_PAGE = StateRecord(
    kind=RecordKind.OPEN,
    profile=Profile.XTS,
    key_version=1,
    sequence=2,
    payload_bytes=67_108_864,
    header_mac=state_record.header_mac(bytes(32), HEADER_BYTES, KEYS),
    generation=2,
    nonce=b"\x22" * 32,
    follows=b"\x11" * 32,
    epoch=b"\xee" * 16,
)
RECORDS = st.builds(
    StateRecord,
    kind=st.just(RecordKind.OPEN),
    profile=st.just(Profile.XTS),
    key_version=st.integers(0, 2**32 - 1),
    sequence=st.integers(1, 2**64 - 1),
    generation=st.integers(1, 2**64 - 1),
    nonce=st.binary(min_size=32, max_size=32).filter(any),
    follows=st.binary(min_size=32, max_size=32),
    epoch=st.binary(min_size=16, max_size=16),
    payload_bytes=st.integers(0, 2**64 - 1),
    header_sha256=st.binary(min_size=32, max_size=32),
    header_mac=st.binary(min_size=32, max_size=32),
)


def signed(body: bytes) -> bytes:
    """A record with any body under a right MAC."""
    return body + hmac.new(KEYS.state_mac.reveal(), body, hashlib.sha256).digest()


def test_the_published_vectors_are_what_the_code_writes() -> None:
    vectors, raw = published(), state_record.encode(INTENT, KEYS, VOLUME)
    assert raw[-32:].hex() == vectors["intent record with payload 67 108 864: MAC"]
    assert hashlib.sha256(raw).hexdigest() == vectors["the same record, SHA-256 of all 4 096 bytes"]
    raw = state_record.encode(OPENED_OF_THE_PAGE, KEYS, VOLUME)
    assert raw[-32:].hex() == vectors["open record of the paragraph below: MAC"]
    assert hashlib.sha256(raw).hexdigest() == vectors["the open record, SHA-256 of all 4 096 bytes"]
    mac = state_record.header_mac(bytes(32), HEADER_BYTES, KEYS)
    assert mac.hex() == vectors["header MAC for a digest of 32 zero bytes"]


def test_every_field_lies_where_the_format_says() -> None:
    raw = state_record.encode(OPENED, KEYS, VOLUME)
    assert raw[:8] == b"SLSTATE1"
    assert struct.unpack(">HHIQQ", raw[8:32]) == (2, 1, 1, 2, 67_108_864)
    assert raw[32:64] == hashlib.sha256(b"pvc-1").digest()
    assert (raw[64:96], raw[96:128]) == (DIGEST, OPENED.header_mac)
    assert raw[128:136] == (7).to_bytes(8, "big")
    assert (raw[136:168], raw[168:200]) == (b"\xb2" * 32, b"\xa1" * 32)
    assert (raw[200:240], raw[240:256]) == (bytes(40), b"\xe1" * 16)
    assert raw[256:4064] == bytes(3808)
    assert raw == signed(raw[:4064])


@given(RECORDS)
def test_what_is_written_is_read_back(record: StateRecord) -> None:
    raw = state_record.encode(record, KEYS, VOLUME)
    assert len(raw) == STATE_RECORD_BYTES
    assert state_record.decode(raw, KEYS, VOLUME) == record


@settings(max_examples=300)
@given(place=st.integers(0, STATE_RECORD_BYTES - 1), bits=st.integers(1, 255))
def test_a_record_with_any_byte_changed_is_invalid(place: int, bits: int) -> None:
    raw = bytearray(state_record.encode(OPENED, KEYS, VOLUME))
    raw[place] ^= bits
    assert state_record.decode(bytes(raw), KEYS, VOLUME) is SlotState.INVALID


@given(st.integers(1, STATE_RECORD_BYTES - 1))
def test_a_record_that_was_torn_is_invalid(length: int) -> None:
    old = state_record.encode(INTENT, KEYS, VOLUME)
    new = state_record.encode(OPENED, KEYS, VOLUME)
    for torn in (new[:length] + old[length:], new[:length] + bytes(STATE_RECORD_BYTES - length)):
        found = state_record.decode(torn, KEYS, VOLUME)
        assert found is SlotState.INVALID or torn in (old, new)


def test_only_zeroes_are_absent() -> None:
    assert state_record.decode(bytes(STATE_RECORD_BYTES), KEYS, VOLUME) is SlotState.ABSENT
    assert state_record.decode(bytes(STATE_RECORD_BYTES - 1) + b"\1", KEYS, VOLUME) is SlotState.INVALID


def test_another_volumes_record_says_nothing() -> None:
    raw = state_record.encode(OPENED, OTHER_KEYS, "pvc-2")
    assert state_record.decode(raw, KEYS, VOLUME) is SlotState.INVALID


@pytest.mark.parametrize(
    ("offset", "field"),
    [
        (0, b"SLSTATE2"),
        (8, b"\x00\x00"),
        (8, b"\x00\x03"),
        (8, b"\x00\x01"),
        (10, b"\x00\x00"),
        (10, b"\x00\x02"),
        (32, hashlib.sha256(b"pvc-2").digest()),
        (16, bytes(8)),
        (128, bytes(8)),
        (136, bytes(32)),
    ],
    ids=[
        "magic",
        "no kind",
        "new kind",
        "an intent with more",
        "no profile",
        "new profile",
        "volume",
        "no sequence",
        "no generation",
        "no nonce",
    ],
)
def test_a_record_that_verifies_and_means_something_else_is_an_error(offset: int, field: bytes) -> None:
    body = state_record.encode(OPENED, KEYS, VOLUME)[:-32]
    body = body[:offset] + field + body[offset + len(field) :]
    with pytest.raises(Tampered, match="another format version or volume; use a newer guest"):
        state_record.decode(signed(body), KEYS, VOLUME)


@given(place=st.sampled_from([*range(200, 240), *range(256, 4064)]), value=st.integers(1, 255), intent=st.booleans())
def test_a_byte_without_a_meaning_must_be_zero(place: int, value: int, intent: bool) -> None:
    body = bytearray(state_record.encode(INTENT if intent else OPENED, KEYS, VOLUME)[:-32])
    body[place] = value
    with pytest.raises(Tampered, match="use a newer guest"):
        state_record.decode(signed(bytes(body)), KEYS, VOLUME)


@given(place=st.sampled_from([*range(16, 24), *range(64, 4064)]), value=st.integers(1, 255))
def test_an_intent_says_nothing_but_that_a_format_began(place: int, value: int) -> None:
    body = bytearray(state_record.encode(INTENT, KEYS, VOLUME)[:-32])
    body[place] = value
    with pytest.raises(Tampered, match="use a newer guest"):
        state_record.decode(signed(bytes(body)), KEYS, VOLUME)


def test_records_follow_one_another_in_alternate_slots() -> None:
    assert [record.sequence for record in (INTENT, FIRST, OPENED)] == [0, 1, 2]
    assert (FIRST.follows, OPENED.follows, OPENED.nonce) == (bytes(32), FIRST.nonce, b"\xb2" * 32)


@pytest.mark.parametrize("length", [0, 32, 4095, 4097])
def test_a_slot_of_another_length_is_an_error(length: int) -> None:
    with pytest.raises(Tampered, match=f"{length} bytes long instead of 4096"):
        state_record.decode(bytes(length), KEYS, VOLUME)


def test_the_header_mac_is_over_context_length_and_digest() -> None:
    message = b"sealed-local/v1 header" + (16 * 1024 * 1024).to_bytes(8, "big") + DIGEST
    assert state_record.header_mac(DIGEST, HEADER_BYTES, KEYS) == hmac.digest(
        KEYS.header_mac.reveal(), message, "sha256"
    )


def test_the_header_that_the_record_was_made_for_is_accepted() -> None:
    state_record.require_header(OPENED, DIGEST, HEADER_BYTES, KEYS)


@pytest.mark.parametrize(
    ("record", "digest", "length", "used"),
    [
        (OPENED, bytes(32), HEADER_BYTES, KEYS),
        (OPENED, DIGEST, HEADER_BYTES - 1, KEYS),
        (OPENED, DIGEST, HEADER_BYTES, OTHER_KEYS),
        (replace(OPENED, header_mac=bytes(32)), DIGEST, HEADER_BYTES, KEYS),
        (replace(OPENED, header_sha256=bytes(32)), DIGEST, HEADER_BYTES, KEYS),
    ],
    ids=["digest", "length", "keys", "mac of the record", "digest of the record"],
)
def test_any_other_header_is_refused(record: StateRecord, digest: bytes, length: int, used: keys.VolumeKeys) -> None:
    with pytest.raises(Tampered, match="is not the one that the volume's state record authenticates"):
        state_record.require_header(record, digest, length, used)
