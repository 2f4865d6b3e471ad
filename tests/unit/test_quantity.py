"""Sizes and percentages mean what Kubernetes means by them, and a reserve never comes out too small."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.errors import InvalidInput
from csi.core.size import human, round_up
from csi.node import quantity
from csi.node.quantity import NO_RESERVE, Reserve

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1000", 1000),
        ("512B", 512),
        ("1K", 1000),
        ("1KB", 1000),
        ("1Ki", 1024),
        ("1KiB", 1024),
        ("3M", 3_000_000),
        ("512Mi", 512 << 20),
        ("2G", 2_000_000_000),
        ("10GiB", 10 * GIB),
        ("10 GiB", 10 * GIB),
        (" 10Gi ", 10 * GIB),
        ("1T", 10**12),
        ("2Ti", 2 << 40),
    ],
)
def test_a_size_is_read(text: str, size_bytes: int) -> None:
    assert quantity.size(text, "f") == size_bytes


@pytest.mark.parametrize(
    "text", ["", " ", "G", "Gi", "-1", "+1", "1.5Gi", "1,5Gi", "1e3", "10 %", "1Gb", "1Pi", "1 2", "x"]
)
def test_what_is_no_size_is_refused_by_field(text: str) -> None:
    with pytest.raises(InvalidInput, match="write for example 10GiB") as caught:
        quantity.size(text, "pools[0].reserve")
    assert caught.value.field == "pools[0].reserve"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", NO_RESERVE),
        ("20Gi", Reserve(size_bytes=20 * GIB)),
        ("0%", Reserve(percent=0)),
        ("7%", Reserve(percent=7)),
        ("10 %", Reserve(percent=10)),
        ("100%", Reserve(percent=100)),
    ],
)
def test_a_reserve_is_a_size_or_a_percentage(text: str, expected: Reserve) -> None:
    assert quantity.reserve(text, "f") == expected


@pytest.mark.parametrize("text", ["101%", "999%", "-1%", "1.5%", "%", "10%%", "ten"])
def test_what_is_no_reserve_is_refused_by_field(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        quantity.reserve(text, "pools[1].reserve")
    assert caught.value.field == "pools[1].reserve"


@pytest.mark.parametrize(
    ("reserve", "total", "kept"),
    [
        (NO_RESERVE, 1000, 0),
        (Reserve(size_bytes=7), 1000, 7),
        (Reserve(size_bytes=2000), 1000, 2000),
        (Reserve(percent=10), 1000, 100),
        (Reserve(percent=10), 1001, 101),
        (Reserve(percent=100), 1001, 1001),
        (Reserve(percent=1), 0, 0),
    ],
)
def test_a_reserve_is_counted_of_the_whole_group_and_rounded_up(reserve: Reserve, total: int, kept: int) -> None:
    assert reserve.of(total) == kept


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536 << 10, "1.50 MiB"),
        (10 * GIB, "10 GiB"),
        (GIB - 1, "1024.00 MiB"),
        (5 << 40, "5 TiB"),
    ],
)
def test_a_size_is_said_as_a_person_would(size_bytes: int, words: str) -> None:
    assert human(size_bytes) == words


@given(st.integers(0, 1 << 62), st.integers(1, 1 << 40))
def test_rounding_up_gives_the_next_multiple(value: int, step: int) -> None:
    rounded = round_up(value, step)
    assert rounded % step == 0
    assert value <= rounded < value + step
