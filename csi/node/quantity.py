"""Sizes and percentages as people write them in configuration: `10GiB`, `512Mi`, `1000`, `10%`."""

import re
from dataclasses import dataclass

from csi.core.errors import InvalidInput
from csi.core.size import GIB, KIB, MIB, TIB

_UNITS = {
    "": 1,
    "K": 1000, "M": 1000_000, "G": 1000_000_000, "T": 1000_000_000_000,
    "Ki": KIB, "Mi": MIB, "Gi": GIB, "Ti": TIB,
}  # fmt: skip
# Digits of ASCII, and no zero before others: that is eight in one place and ten in another.
# No more digits than fit into 64 bits.
_SIZE = re.compile(r"(0|[1-9][0-9]{0,17})\s*([KMGT]i?)?B?")
_PERCENT = re.compile(r"([0-9]|[1-9][0-9]|100)\s*%")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Room that is kept free in each volume group: so many bytes, or percent of the group's size."""

    size_bytes: int = 0
    percent: int = 0

    def of(self, total_bytes: int) -> int:
        """The reserve in bytes of a group of that size, rounded up."""
        return max(self.size_bytes, -(-total_bytes * self.percent // 100))


NO_RESERVE = Reserve()


def size(text: str, field: str) -> int:
    """A size in bytes. Raises `InvalidInput` naming `field`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(field, f"{text!r} is not a size; write for example 10GiB, 512Mi or a number of bytes")
    return int(match[1]) * _UNITS[match[2] or ""]


def reserve(text: str, field: str) -> Reserve:
    """A size or a percentage. Raises `InvalidInput` naming `field`."""
    match = _PERCENT.fullmatch(text.strip())
    return Reserve(percent=int(match[1])) if match else Reserve(size_bytes=size(text, field))
