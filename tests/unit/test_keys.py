"""One secret, four keys: pinned by the published vectors, and by a second HKDF that is written here from RFC 5869."""

import hashlib
import hmac
import re
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.errors import InvalidInput
from csi.core.secret import Secret
from csi.guest.seal import keys

FORMAT_PAGE = Path(__file__).resolve().parents[2] / "docs" / "sealed-format.md"
SECRET = Secret(bytes(range(32)))
MINE, BROKERS = bytes(range(64)), Secret(bytes(range(128, 160)))
PURPOSES = ("luks-passphrase", "header-mac", "state-mac", "luks-uuid")


def published() -> dict[str, str]:
    """The table of vectors in the description of the format."""
    text = FORMAT_PAGE.read_text().partition("**Vectors.**")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| ([^|]+?) \| `([0-9a-f-]+)` \|$", text, re.MULTILINE))


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 with the format's salt."""
    extracted = hmac.new(b"sealed-local/v1", secret, hashlib.sha256).digest()
    made, block = b"", b""
    while len(made) < length:
        block = hmac.new(extracted, block + info + bytes([len(made) // 32 + 1]), hashlib.sha256).digest()
        made += block
    return made[:length]


def info(purpose: str, volume_id: str, key_version: int) -> bytes:
    parts = (purpose.encode(), volume_id.encode(), key_version.to_bytes(4, "big"))
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def test_the_published_vectors_are_what_the_code_derives() -> None:
    vectors = published()
    derived = keys.derive(SECRET, "pvc-1", 1)
    assert len(vectors) == 11
    assert keys.info_of("luks-passphrase", "pvc-1", 1).hex() == vectors["info of `luks-passphrase`"]
    assert derived.passphrase.reveal().hex() == vectors["passphrase"]
    assert derived.header_mac.reveal().hex() == vectors["header MAC key"]
    assert derived.state_mac.reveal().hex() == vectors["state MAC key"]
    assert derived.luks_uuid == vectors["LUKS UUID"]
    mixed = keys.volume_key(MINE, BROKERS, "pvc-1", 1)
    assert mixed.reveal().hex() == vectors["volume key"]


@given(st.binary(min_size=32, max_size=32), st.text(max_size=80), st.integers(0, 2**32 - 1))
def test_every_key_is_what_a_second_implementation_derives(secret: bytes, volume_id: str, key_version: int) -> None:
    derived = keys.derive(Secret(secret), volume_id, key_version)
    wanted = [hkdf(secret, info(purpose, volume_id, key_version), 32) for purpose in PURPOSES]
    assert [derived.passphrase.reveal(), derived.header_mac.reveal(), derived.state_mac.reveal()] == wanted[:3]
    raw = bytearray(wanted[3][:16])
    raw[6], raw[8] = 0x40 | raw[6] & 0x0F, 0x80 | raw[8] & 0x3F
    assert derived.luks_uuid == str(uuid.UUID(bytes=bytes(raw)))


def test_each_purpose_volume_and_version_has_keys_of_its_own() -> None:
    made = [
        keys.derive(secret, volume_id, version)
        for secret in (SECRET, Secret(bytes(32)))
        for volume_id in ("pvc-1", "pvc-2", "pvc-11")
        for version in (1, 2)
    ]
    values = [
        value for one in made for value in (one.passphrase.reveal(), one.header_mac.reveal(), one.state_mac.reveal())
    ]
    assert len({*values}) == len(values) == 36
    assert len({one.luks_uuid for one in made}) == 12


FIELDS = st.tuples(st.text(max_size=8), st.text(max_size=8), st.integers(0, 300))


@given(FIELDS, FIELDS)
def test_two_different_inputs_never_give_the_same_info(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    assert (keys.info_of(*one) == keys.info_of(*other)) == (one == other)


def test_a_field_can_not_run_into_the_next_one() -> None:
    assert keys.info_of("ab", "c", 1) != keys.info_of("a", "bc", 1)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match=f"released {length} bytes instead of 32"):
        keys.derive(Secret(bytes(length)), "pvc-1", 1)


def test_no_key_shows_in_a_text() -> None:
    derived = keys.derive(SECRET, "pvc-1", 1)
    assert repr(derived).count("Secret(********)") == 3
    assert "457d6c94" not in repr(derived)


@given(st.binary(min_size=64, max_size=64), st.binary(min_size=32, max_size=32), st.text(max_size=80))
def test_a_volume_key_is_what_a_second_implementation_mixes(mine: bytes, brokers: bytes, volume_id: str) -> None:
    shares = (64).to_bytes(4, "big") + mine + (32).to_bytes(4, "big") + brokers
    wanted = hkdf(shares, info("volume-key", volume_id, 1), 64)
    assert keys.volume_key(mine, Secret(brokers), volume_id, 1).reveal() == wanted


def test_either_share_alone_makes_another_volume_key() -> None:
    made = {
        keys.volume_key(mine, brokers, "pvc-1", 1).reveal()
        for mine in (MINE, bytes(64))
        for brokers in (BROKERS, Secret(bytes(32)))
    }
    assert len(made) == 4


@pytest.mark.parametrize(("mine", "brokers"), [(MINE[:63], 32), (b"", 32), (MINE, 0), (MINE, 31)])
def test_a_share_that_is_too_short_makes_no_key(mine: bytes, brokers: int) -> None:
    with pytest.raises(InvalidInput, match="share"):
        keys.volume_key(mine, Secret(bytes(brokers)), "pvc-1", 1)
