"""A volume group as a place for new volumes: its room, the largest volume of a kind, and where one of a size would lie.

CreateVolume, GetCapacity, the metrics and the strategies ask a target and nothing else. Counts in extents, as LVM does. A
group in which LVM itself would allocate nothing has no room, whatever is free in it, and says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from csi.core.device_number import DeviceNumber
from csi.core.sealed import device_bytes, usable_bytes
from csi.core.size import KIB
from csi.node.lvm.layout import LINEAR, MOST_STRIPES, Layout, Linear, Striped
from csi.node.lvm.model import AllocationPolicy, PhysicalVolume, VolumeGroup
from csi.node.volume import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A place for an LV. `pvs` is empty when LVM may choose the disks itself."""

    vg: VolumeGroup
    extents: int
    layout: Layout = LINEAR
    """With the number of stripes, where there are any."""
    pvs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What no metadata tells about the groups at this moment."""

    read_only: frozenset[DeviceNumber] = frozenset()
    """Disks that the kernel lets nobody write to."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Groups in which LVM has refused a volume a short time ago, with its words."""


AS_RECORDED: Final = Conditions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A volume group that volumes may go to. `kept_extents` is the operator's reserve."""

    vg: VolumeGroup
    kept_extents: int = 0
    now: Conditions = AS_RECORDED

    @property
    def room(self) -> int:
        """Free bytes that new volumes may take; 0 while it is closed."""
        return self._budget * self.vg.extent_bytes

    @property
    def closed(self) -> str:
        """Why LVM would allocate nothing here, however much is free, and what a person can do; empty when it would."""
        vg = self.vg
        copied = next((pv for pv in vg.pvs if pv.copy), None)
        protected = next((pv for pv in vg.pvs if pv.device is not None and pv.device in self.now.read_only), None)
        if vg.missing_disks:
            return "a disk of it is missing (bring it back, or take it out: vgreduce --removemissing)"
        if vg.exported:
            return f"it is exported (vgimport {vg.name})"
        if not vg.writable:
            return f"it is read-only (vgchange --permission rw {vg.name})"
        if copied is not None:
            return f"a copy of its disk {copied.name} is there as {copied.copy} (take one of the two away)"
        if protected is not None:
            return f"its disk {protected.name} is write-protected (blockdev --setrw {protected.name})"
        if vg.max_lv and len(vg.lvs) >= vg.max_lv:
            return f"it may hold no more than {vg.max_lv} volumes (vgchange --logicalvolume 0 {vg.name})"
        if vg.metadata_free_bytes is not None and not vg.takes_metadata:
            return (
                f"its metadata area is full ({vg.metadata_free_bytes // KIB} KiB free, see vgs -o vg_mda_free; delete "
                "volumes that nobody needs, or use another group)"
            )
        return self.now.refused.get(vg.name, "")

    def largest(self, parameters: Parameters) -> int:
        """The largest usable size in bytes of a volume with these parameters; 0 when none fits."""
        match parameters.layout:
            case Linear():
                room = min(self._linear_room, self._budget)
            case Striped() as striped:
                room = max((self._striped_room(count) for count in self._stripe_counts(striped)), default=0)
            case _:
                assert_never(parameters.layout)
        return usable_bytes(room * self.vg.extent_bytes, parameters.profile)

    def fit(self, parameters: Parameters, size_bytes: int) -> Placement | None:
        """The place for a volume whose usable size is `size_bytes`; None when it doesn't fit."""
        extents = -(-device_bytes(size_bytes, parameters.profile) // self.vg.extent_bytes)
        match parameters.layout:
            case Linear():
                return self._fit_linear(extents)
            case Striped() as striped:
                return self._fit_striped(striped, extents)
            case _:
                assert_never(parameters.layout)

    @property
    def _budget(self) -> int:
        return 0 if self.closed else max(0, self.vg.usable_free_extents - self.kept_extents)

    @property
    def _one_disk_only(self) -> bool:
        match self.vg.policy:
            case AllocationPolicy.CONTIGUOUS | AllocationPolicy.CLING | AllocationPolicy.CLING_BY_TAGS:
                return True
            case AllocationPolicy.NORMAL | AllocationPolicy.ANYWHERE:
                return False
            case _:
                assert_never(self.vg.policy)

    @property
    def _linear_room(self) -> int:
        takes = [self._takes(pv) for pv in self.vg.pvs]
        return max(takes, default=0) if self._one_disk_only else sum(takes)

    def _takes(self, pv: PhysicalVolume) -> int:
        """Extents of one volume, or of one stripe of it, that LVM would allocate on this disk."""
        free = pv.usable_free_extents
        return min(free, pv.longest_run) if self.vg.policy is AllocationPolicy.CONTIGUOUS else free

    def _fit_linear(self, extents: int) -> Placement | None:
        if extents > min(self._linear_room, self._budget):
            return None
        # LVM begins on the disk with the longest free run, and may not leave it; another one may have more in all.
        disks = self._emptiest[:1] if self._one_disk_only else []
        return Placement(vg=self.vg, extents=extents, pvs=tuple(pv.name for pv in disks))

    def _fit_striped(self, striped: Striped, extents: int) -> Placement | None:
        for count in self._stripe_counts(striped):
            rounded = -(-extents // count) * count
            if rounded <= self._striped_room(count):
                disks = self._emptiest[:count]
                fixed = replace(striped, count=count)
                return Placement(vg=self.vg, extents=rounded, layout=fixed, pvs=tuple(pv.name for pv in disks))
        return None

    def _stripe_counts(self, striped: Striped) -> list[int]:
        """Stripe counts to try, most first: the one asked for, else as many disks as have the room (never just one)."""
        if striped.count is not None:
            return [striped.count]
        return list(range(min(MOST_STRIPES, sum(self._takes(pv) > 0 for pv in self.vg.pvs)), 1, -1))

    def _striped_room(self, count: int) -> int:
        """Extents that fit in `count` equal stripes on the emptiest disks: the fullest of these limits all of them."""
        disks = self._emptiest
        if len(disks) < count:
            return 0
        return min(self._takes(disks[count - 1]) * count, self._budget - self._budget % count)

    @property
    def _emptiest(self) -> list[PhysicalVolume]:
        return sorted(self.vg.pvs, key=lambda pv: (-self._takes(pv), pv.name))
