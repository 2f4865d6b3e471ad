"""A device number is read from the kernel's text, printed as the kernel prints it, and taken of block devices only."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.device_number import DeviceNumber

NUMBERS = st.builds(DeviceNumber, st.integers(0, 4095), st.integers(0, (1 << 20) - 1))


def status(kind: int, number: DeviceNumber) -> os.stat_result:
    """What stat(2) would return for a special file of that kind."""
    return os.stat_result((kind | 0o600, *([0] * 9)), {"st_rdev": number.combined})


@given(number=NUMBERS)
def test_it_reads_what_it_prints(number: DeviceNumber) -> None:
    assert str(number) == f"{number.major}:{number.minor}"
    assert DeviceNumber.parse(str(number)) == number


@pytest.mark.parametrize(
    "text", ["", "8", "8:", ":0", "8:-1", "a:b", "8:1:2", "8: 1", "8:1\n", "\u0668:1", "08:1", "8:01"]
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a device number"):
        DeviceNumber.parse(text)


@pytest.mark.parametrize("text", ["4096:0", "8:1048576", "8:4294967295", "4294967296:0", f"8:{'9' * 5000}"])
def test_a_number_that_no_device_can_have_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a device number"):
        DeviceNumber.parse(text)


def test_the_greatest_number_is_one_that_system_calls_take() -> None:
    number = DeviceNumber.parse("4095:1048575")
    assert (os.major(number.combined), os.minor(number.combined)) == (4095, 1048575)


@given(number=NUMBERS)
def test_a_block_device_has_one_and_nothing_else_has(number: DeviceNumber) -> None:
    assert DeviceNumber.of_block_device(status(stat.S_IFBLK, number)) == number
    for other in (stat.S_IFCHR, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        assert DeviceNumber.of_block_device(status(other, number)) is None
