"""Mount options in words become the flags that mount(2) has for them, and the rest is the filesystem's own text."""

import pytest

from csi.core import mount_options
from csi.core.mount_options import NO_ACCESS_TIMES, NO_DEVICES, NO_EXECUTION, NO_SUID, READ_ONLY


@pytest.mark.parametrize(
    ("options", "flags", "own"),
    [
        ((), 0, ""),
        (("ro",), READ_ONLY, ""),
        (("noatime", "ro"), READ_ONLY | NO_ACCESS_TIMES, ""),
        (("nosuid", "nodev", "noexec"), NO_SUID | NO_DEVICES | NO_EXECUTION, ""),
        (("ro,nosuid",), READ_ONLY | NO_SUID, ""),
        (("discard", "data=ordered"), 0, "discard,data=ordered"),
        (("user",), NO_SUID | NO_DEVICES | NO_EXECUTION, ""),
    ],
)
def test_each_word_goes_where_the_kernel_takes_it(options: tuple[str, ...], flags: int, own: str) -> None:
    assert mount_options.split(options) == (flags, own)


def test_the_later_of_two_words_counts() -> None:
    assert mount_options.split(("ro", "rw")) == (0, "")
    assert mount_options.split(("rw", "ro")) == (READ_ONLY, "")
    assert mount_options.split(("nosuid", "defaults", "noatime")) == (NO_ACCESS_TIMES, "")


def test_words_for_programs_are_left_out() -> None:
    assert mount_options.split(("_netdev", "nofail", "x-systemd.requires=a", "comment=b", "noauto")) == (0, "")


def test_a_word_that_nobody_knows_is_left_for_the_kernel_to_refuse() -> None:
    assert mount_options.split(("no-such-option",)) == (0, "no-such-option")
