"""LVM's objects as its metadata records them. Extents are LVM's allocation unit; sizes are bytes.

A record changes only when somebody commits a change of its group. What the kernel does with an LV now is `csi.node.live`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused, Unavailable
from csi.node.lvm import dm_name

METADATA_MARGIN_BYTES: Final = 32 * 1024
"""What stays free in a metadata area: at its first stage and at its deletion a volume's tags grow by some 40 bytes, and
both must work in a group that is full."""


class AllocationPolicy(StrEnum):
    """How LVM chooses extents in a group; the words of `vgchange --alloc` and of the metadata."""

    CONTIGUOUS = "contiguous"
    """A volume, or each stripe of it, is one run of extents."""
    CLING = "cling"
    """A volume, or each stripe of it, stays on the disk that it begins on."""
    CLING_BY_TAGS = "cling_by_tags"
    """The same, as no tags are set by which a disk could be another's neighbour."""
    NORMAL = "normal"
    ANYWHERE = "anywhere"

    @classmethod
    def read(cls, word: str) -> "AllocationPolicy":
        """The strictest for a word of a later LVM: what fits under it fits under any."""
        try:
            return cls(word)
        except ValueError:
            return cls.CONTIGUOUS


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicalVolume:
    """A disk or partition of a volume group."""

    name: str
    extents: int
    free_extents: int
    allocatable: bool
    missing: bool
    device: DeviceNumber | None = None
    """None when it is missing."""
    uuid: str = ""
    longest_run: int = 0
    """The most free extents that lie in a row."""
    copy: str = ""
    """Another device that shows the same label: a clone of this disk. LVM then changes nothing in the group."""

    @property
    def usable_free_extents(self) -> int:
        """Free extents that LVM would really hand out."""
        return self.free_extents if self.allocatable and not self.missing else 0


class Tags(AbstractSet[str]):
    """A set of a few words. Each volume of a node has one, and a frozenset takes four times the memory."""

    __slots__ = ("_words",)

    def __init__(self, words: Iterable[str]) -> None:
        # Most words are the same in all volumes: one string each, not one a volume.
        self._words = tuple(sorted({sys.intern(word) for word in words}))

    def __contains__(self, word: object) -> bool:
        return word in self._words

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)

    def __hash__(self) -> int:
        return self._hash()

    def __repr__(self) -> str:
        return f"Tags({self._words!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalVolume:
    """A logical volume with its tags, which are this driver's whole store."""

    name: str
    vg: str
    size_bytes: int
    tags: AbstractSet[str]
    partial: bool
    """A disk that holds part of it is missing."""
    uuid: str = ""
    vg_uuid: str = ""
    origin: str = ""
    """The LV that this one is a snapshot of."""
    pool: str = ""
    """The thin pool that holds it, or the cache pool that caches it."""
    is_origin: bool = False
    """It has snapshots, or one is being merged into it, which LVM hides."""
    is_locked: bool = False
    """LVM moves or converts it now (pvmove, lvconvert), so that there are two copies."""

    @property
    def path(self) -> str:
        """The one canonical device path. Kata's Rust runtime compares these texts, so no other form is ever used."""
        return f"/dev/{self.vg}/{self.name}"

    @property
    def mapping_name(self) -> str:
        """Device-mapper's name of it while it is active."""
        return dm_name.encode(self.vg, self.name)

    @property
    def mapping_uuid(self) -> str | None:
        """Device-mapper's UUID of it while it is active; None when LVM did not tell the parts."""
        if not (self.uuid and self.vg_uuid):
            return None
        return "LVM-" + self.vg_uuid.replace("-", "") + self.uuid.replace("-", "")


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
    uuid: str = ""
    metadata_free_bytes: int | None = None
    """By how much the group's text may still grow: each commit needs room for a whole new one. None when nobody told."""
    policy: AllocationPolicy = AllocationPolicy.NORMAL
    max_lv: int = 0
    """The most volumes that it may hold; 0 for no limit."""

    @property
    def size_bytes(self) -> int:
        """All extents, used and free."""
        return self.extents * self.extent_bytes

    @property
    def free_bytes(self) -> int:
        """Free extents."""
        return self.free_extents * self.extent_bytes

    @property
    def takes_metadata(self) -> bool:
        """Whether its metadata area has room for another volume, and for what the tags of those in it still grow."""
        return self.metadata_free_bytes is None or self.metadata_free_bytes >= METADATA_MARGIN_BYTES

    @property
    def missing_disks(self) -> int:
        """How many of its disks are not there."""
        return max(sum(pv.missing for pv in self.pvs), int(self.partial))

    @property
    def usable_free_extents(self) -> int:
        """Free extents on disks that are present and allocatable; 0 where nothing may be created.

        LVM creates nothing in a group that misses a disk, however much room the other disks have.
        """
        if self.exported or not self.writable or self.missing_disks or not self.takes_metadata:
            return 0
        return sum(pv.usable_free_extents for pv in self.pvs)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableGroup:
    """A group that is there, and that nobody can look into now. It is never taken for one that is absent."""

    name: str
    disks: tuple[str, ...]
    why: str
    lvs: tuple[LogicalVolume, ...] | None = None
    """What was in it when it was last looked into; None when that was never, or before a change of ours."""

    def may_hold(self, is_it: Callable[[LogicalVolume], bool]) -> bool:
        """Whether such a volume is in it as far as anybody can tell."""
        return self.lvs is None or any(is_it(lv) for lv in self.lvs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignGroup:
    """A group that the configuration can't mean. Only its disks' labels were looked at."""

    name: str
    uuid: str
    disks: tuple[DeviceNumber, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A group that has a name of this node's configuration, and is not this node's own."""

    vg: VolumeGroup
    why: str

    @property
    def said(self) -> str:
        """What a person must know and do about it."""
        disks = ", ".join(pv.name for pv in self.vg.pvs)
        return f"volume group {self.vg.name} on {disks} (UUID {self.vg.uuid}) is not used: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The groups that the configuration can mean, and what else is known of this node's disks."""

    vgs: tuple[VolumeGroup, ...]
    unused: tuple[PhysicalVolume, ...] = ()
    """Disks that have LVM's label, belong to no group and hold nothing."""
    unreadable: tuple[UnreadableGroup, ...] = ()
    foreign: tuple[ForeignGroup, ...] = ()
    strangers: tuple[Stranger, ...] = ()

    def strangers_of(self, name: str) -> tuple[Stranger, ...]:
        """Those of a name; none while a group of this node's own has it, as that one is meant."""
        return tuple(one for one in self.strangers if one.vg.name == name and name not in {vg.name for vg in self.vgs})

    def require_readable(
        self, what: str, is_it: Callable[[LogicalVolume], bool], doubted: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Raises `Unavailable` while a group that may hold `what`, which wasn't found elsewhere, can't be looked into: one
        of a `doubted` name, or one in which it was seen.
        """
        doubts = [
            group
            for group in self.unreadable
            if group.may_hold(is_it) and (doubted(group.name) or group.lvs is not None)
        ]
        if doubts:
            said = "; ".join(f"volume group {group.name} can't be looked into: {group.why}" for group in doubts)
            raise Unavailable(
                f"{what} may be in a group that nobody can read now. {said}. Mend that; the call is repeated"
            )
        held = [one for one in self.strangers if self.strangers_of(one.vg.name) and any(map(is_it, one.vg.lvs))]
        if held:
            raise Unavailable(f"{what} is in a group that is not trusted: {'; '.join(one.said for one in held)}")

    def vg(self, name: str) -> VolumeGroup | None:
        """The volume group of that name.

        Raises `Refused` when two have it, as neither is known to be the right one, and `Unavailable` when nobody can look
        into it now.
        """
        if name in self.ambiguous:
            raise Refused(self.why_ambiguous(name))
        for group in self.unreadable:
            if group.name == name:
                raise Unavailable(
                    f"volume group {name} can't be looked into: {group.why}. Mend that; the call is repeated"
                )
        return next((vg for vg in self.vgs if vg.name == name), None)

    @property
    def ambiguous(self) -> frozenset[str]:
        """Names that more than one volume group has: a cloned disk, or a label that somebody planted."""
        names = [vg.name for vg in self.vgs]
        return frozenset(name for name in names if names.count(name) > 1)

    def why_ambiguous(self, name: str) -> str:
        """What a person must know and do about groups of one name."""
        twins = "; ".join(
            f"UUID {vg.uuid or 'unknown'} on {', '.join(pv.name for pv in vg.pvs)}"
            for vg in self.vgs
            if vg.name == name
        )
        return (
            f"two volume groups have the name {name} ({twins}), so neither is used. Take the disk of the wrong one away, "
            "or rename it: vgrename UUID NEW-NAME"
        )

    @property
    def lvs(self) -> tuple[LogicalVolume, ...]:
        """The logical volumes of all groups."""
        return tuple(lv for vg in self.vgs for lv in vg.lvs)
