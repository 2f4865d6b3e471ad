"""A header copy's digest covers all of it: its parts by a hash, the zeroes behind them one by one."""

import hashlib

import pytest

from csi.core.header_digest import header_digest
from csi.core.sealed import HEADER_BYTES, HEADER_PARTS_BYTES

PARTS = bytes(range(1, 1 + 71)) * 4096
COPY = PARTS.ljust(HEADER_BYTES, b"\0")


def test_it_is_of_the_parts() -> None:
    assert len(PARTS) == HEADER_PARTS_BYTES
    assert header_digest(COPY) == header_digest(PARTS) == hashlib.sha256(PARTS).digest()


@pytest.mark.parametrize("at", [0, HEADER_PARTS_BYTES - 1])
def test_a_changed_part_has_another(at: int) -> None:
    changed = bytearray(COPY)
    changed[at] ^= 1
    assert header_digest(changed) not in (header_digest(COPY), b"")


@pytest.mark.parametrize("at", [HEADER_PARTS_BYTES, HEADER_PARTS_BYTES + 65536, HEADER_BYTES - 1])
def test_a_copy_with_anything_behind_its_parts_has_none(at: int) -> None:
    changed = bytearray(COPY)
    changed[at] = 1
    assert header_digest(changed) == b""


@pytest.mark.parametrize("other", [COPY[:-1], COPY + b"\0", PARTS[:-1], PARTS + b"\0", b""])
def test_neither_has_one_of_another_length(other: bytes) -> None:
    assert header_digest(other) == b""
