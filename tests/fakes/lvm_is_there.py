"""LVM's answer to the look that comes before the first command of a process."""

from collections.abc import Sequence

from csi.core.command import Result

_FIRST_LOOK = ("lvmconfig", "version")


def is_first_look(argv: Sequence[str]) -> bool:
    """Whether this is it, and not a command on a group."""
    return argv[1] in _FIRST_LOOK


def answer(argv: Sequence[str]) -> Result:
    """It is there and reads the driver's settings."""
    return Result(argv=tuple(argv), returncode=0, stdout=b"  LVM version:     2.03.16(2) (2022-05-18)\n", stderr=b"")
