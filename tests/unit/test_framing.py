"""The framing of hash inputs: its bytes are frozen, it confuses no two lists of fields, and it is written once."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.broker.claims import SampleClaims
from csi.broker.vault import Vault
from csi.core.framing import framed
from csi.core.secret import Secret

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ((), ""),
        ((b"",), "00000000"),
        ((b"a", b"bc"), "00000001 61 00000002 6263"),
        ((b"x" * 256,), "00000100" + "78" * 256),
    ],
    ids=["no field", "an empty field", "two fields", "the length is big-endian"],
)
def test_the_bytes_are_those_that_keys_were_made_from(fields: tuple[bytes, ...], wanted: str) -> None:
    assert framed(*fields) == bytes.fromhex(wanted)


@given(first=st.lists(st.binary(max_size=5), max_size=4), second=st.lists(st.binary(max_size=5), max_size=4))
def test_two_lists_of_fields_never_give_the_same_bytes(first: list[bytes], second: list[bytes]) -> None:
    assert (framed(*first) == framed(*second)) == (first == second)


def test_a_measurement_and_a_stored_secret_of_earlier_versions_are_still_understood() -> None:
    guest = SampleClaims(launch_digest="abcde", init_data=None, svn="1")
    assert guest.measurement == "d9911188a214d88db286172cf70ef28e1c64aa4c0ee98518b94453534d51a428"
    stored = bytes.fromhex("000000000000000000000000bdc2234f2814c440a9ec8395dd2351895c150fd28721")
    assert Vault(Secret(bytes(32))).unwrap(stored, "volume", "pvc-1", "1") == Secret(b"secret")


def test_it_is_written_once() -> None:
    """A second spelling could differ in one byte, and nobody would see it until a volume does not open."""
    spelling = re.compile(r"len\(\w+\)\.to_bytes\(4")
    found = [str(path.relative_to(ROOT)) for path in (ROOT / "csi").rglob("*.py") if spelling.search(path.read_text())]
    assert found == ["csi/core/framing.py"]
