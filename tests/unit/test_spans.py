"""Long spans of memory are compared wholly, though piece by piece."""

import pytest

from csi.core import spans

PIECE = 64 * 1024
PLACES = (0, 1, PIECE - 1, PIECE, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 9)


@pytest.mark.parametrize("length", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 10])
def test_zeroes_are_zero_and_equal_to_themselves(length: int) -> None:
    assert spans.is_zero(bytes(length))
    assert spans.equal(bytes(length), memoryview(bytearray(length)))


@pytest.mark.parametrize("place", PLACES)
def test_one_changed_byte_is_seen_wherever_it_lies(place: int) -> None:
    plain, changed = bytes(2 * PIECE + 10), bytearray(2 * PIECE + 10)
    changed[place] = 1
    assert not spans.is_zero(memoryview(changed))
    assert not spans.equal(plain, changed)
    assert not spans.equal(memoryview(changed), plain)


@pytest.mark.parametrize("more", [1, PIECE])
def test_a_longer_span_is_another_one(more: int) -> None:
    assert not spans.equal(bytes(PIECE), bytes(PIECE + more))
