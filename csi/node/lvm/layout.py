"""How an LV lies on its disks. Each layout carries its own fields; whoever decides by it is asked for every case."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never


class LayoutName(StrEnum):
    """The words of the StorageClass parameter `lvmType`."""

    LINEAR = "linear"
    STRIPING = "striping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """On any free extents, one disk after the other."""


LINEAR: Final = Linear()
MOST_STRIPES: Final = 128
"""LVM's own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Striped:
    """In equal stripes on several disks at once. None leaves the number of disks to the place, the size to LVM."""

    count: int | None = None
    size_kib: int | None = None


Layout = Linear | Striped


def name(layout: Layout) -> LayoutName:
    """The word for a layout in messages."""
    match layout:
        case Linear():
            return LayoutName.LINEAR
        case Striped():
            return LayoutName.STRIPING
        case _:
            assert_never(layout)
