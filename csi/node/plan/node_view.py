"""What a node shows around one volume at one moment: the observation that the stage and publish plans are made from."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from csi.core.device_number import DeviceNumber
from csi.core.mount import Mount
from csi.node.kata.record import Record
from csi.node.lvm.live_device import LiveDevice
from csi.node.lvm.names import VolumeId

TOMBSTONE_SOURCE: Final = "sealed-local-tombstone"
"""Begin of the source name of the read-only tmpfs on a direct volume's target; `/` and the volume id follow."""


def tombstone_source(volume_id: VolumeId) -> str:
    """What `mount` and `df` show as the source of a volume's tombstone: its owner can be told from the mount alone."""
    return f"{TOMBSTONE_SOURCE}/{volume_id}"


def is_tombstone(mount: Mount) -> bool:
    """Whether a mount is a tombstone of this driver."""
    return mount.fstype == "tmpfs" and mount.source.partition("/")[0] == TOMBSTONE_SOURCE


def tombstone_owner(mount: Mount) -> str | None:
    """The volume of a tombstone; None for another mount, and for a tombstone of a version that didn't name it."""
    return mount.source.partition("/")[2] or None if is_tombstone(mount) else None


class PathKind(Enum):
    """What lies at a path, symbolic links not followed."""

    ABSENT = "absent"
    DIRECTORY = "directory"
    FILE = "file"
    DEVICE = "device"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathView:
    """One path of a request: what lies there, what is mounted exactly there, and whether a directory holds anything."""

    path: str
    """As the request writes it. Kata looks its record up by this text."""
    leads_to: str = ""
    """Where that is, links among its parents followed: the kernel's list of mounts names this path. Empty: the same."""
    kind: PathKind = PathKind.ABSENT
    mounts: tuple[Mount, ...] = ()
    device: DeviceNumber | None = None
    """Where the path is a block device."""
    empty: bool = True

    @property
    def real(self) -> str:
        """Where the path leads."""
        return self.leads_to or self.path

    @property
    def top(self) -> Mount | None:
        """The mount that a reader of the path sees."""
        return self.mounts[-1] if self.mounts else None

    @property
    def is_tombstone(self) -> bool:
        """Whether the read-only tombstone is what a reader sees."""
        return self.top is not None and is_tombstone(self.top)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveDevice:
    """A device of a volume as the kernel alone knows it: by the name that LVM gave it."""

    vg: str
    name: str
    live: LiveDevice
    node_is_right: bool = True
    """Whether its path in /dev leads to it."""

    @property
    def path(self) -> str:
        """The one canonical device path."""
        return f"/dev/{self.vg}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publications:
    """Every place that shows a volume now, staging path not counted. Mounts are named by where they are."""

    mounts: tuple[str, ...] = ()
    """Targets with the filesystem bound on them."""
    devices: tuple[str, ...] = ()
    """Targets with the device node bound on them."""
    tombstones: tuple[str, ...] = ()
    """Targets with the volume's tombstone on them."""
    records: dict[str, Record] = field(default_factory=dict)
    """Target path, as kubelet wrote it, to the Kata record that names the volume or its device."""

    @property
    def targets(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted({*self.mounts, *self.devices, *self.tombstones, *self.records}))

    def others(self, *own: str) -> tuple[str, ...]:
        """All but this place, by each of its names."""
        return tuple(path for path in self.targets if path not in own)
