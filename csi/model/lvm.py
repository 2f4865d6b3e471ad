"""LVM's objects as one `lvm fullreport` shows them. Extents are LVM's allocation unit; sizes are bytes."""

from dataclasses import dataclass
from enum import Enum


class Activation(Enum):
    """Whether the kernel has the LV. `UNKNOWN` is what LVM says where it can't ask device-mapper."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicalVolume:
    """A disk or partition of a volume group."""

    name: str
    extents: int
    free_extents: int
    allocatable: bool
    missing: bool

    @property
    def usable_free_extents(self) -> int:
        """Free extents that LVM would really hand out."""
        return self.free_extents if self.allocatable and not self.missing else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalVolume:
    """A logical volume with its tags, which are this driver's whole store."""

    name: str
    vg: str
    size_bytes: int
    tags: frozenset[str]
    activation: Activation
    is_open: bool
    partial: bool
    """A disk that holds part of it is missing."""
    device: tuple[int, int] | None
    """Major and minor number while active."""

    @property
    def path(self) -> str:
        """The one canonical device path. Kata's Rust runtime compares these texts, so no other form is ever used."""
        return f"/dev/{self.vg}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeGroup:
    """A volume group with its disks and volumes."""

    name: str
    extent_bytes: int
    extents: int
    free_extents: int
    writable: bool
    exported: bool
    partial: bool
    pvs: tuple[PhysicalVolume, ...]
    lvs: tuple[LogicalVolume, ...]

    @property
    def size_bytes(self) -> int:
        """All extents, used and free."""
        return self.extents * self.extent_bytes

    @property
    def free_bytes(self) -> int:
        """Free extents."""
        return self.free_extents * self.extent_bytes

    @property
    def usable_free_extents(self) -> int:
        """Free extents on disks that are present and allocatable; 0 where nothing may be created."""
        if self.exported or not self.writable:
            return 0
        return sum(pv.usable_free_extents for pv in self.pvs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything LVM knows on this node, seen at one moment."""

    vgs: tuple[VolumeGroup, ...]

    def vg(self, name: str) -> VolumeGroup | None:
        """The volume group of that name."""
        return next((vg for vg in self.vgs if vg.name == name), None)

    @property
    def lvs(self) -> tuple[LogicalVolume, ...]:
        """The logical volumes of all groups."""
        return tuple(lv for vg in self.vgs for lv in vg.lvs)
