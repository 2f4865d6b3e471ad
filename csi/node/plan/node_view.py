"""What a node shows around one volume at one moment: the observation that the stage and publish plans are made from."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from csi.core.device_number import DeviceNumber
from csi.core.mount import Mount
from csi.node.kata.record import Record

TOMBSTONE_SOURCE: Final = "sealed-local-tombstone"
"""Source name of the read-only tmpfs on a direct volume's target, as `mount` and `df` show it."""


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
    kind: PathKind = PathKind.ABSENT
    mounts: tuple[Mount, ...] = ()
    device: DeviceNumber | None = None
    """Where the path is a block device."""
    empty: bool = True

    @property
    def top(self) -> Mount | None:
        """The mount that a reader of the path sees."""
        return self.mounts[-1] if self.mounts else None

    @property
    def is_tombstone(self) -> bool:
        """Whether the read-only tombstone is what a reader sees."""
        return self.top is not None and self.top.fstype == "tmpfs" and self.top.source == TOMBSTONE_SOURCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Publications:
    """Every place that shows a volume now, staging path not counted."""

    mounts: tuple[str, ...] = ()
    """Targets with the filesystem bound on them."""
    devices: tuple[str, ...] = ()
    """Targets with the device node bound on them."""
    records: dict[str, Record] = field(default_factory=dict)
    """Target path to the Kata record that names the volume's device."""

    @property
    def targets(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted({*self.mounts, *self.devices, *self.records}))

    def others(self, target: str) -> tuple[str, ...]:
        """All but this one."""
        return tuple(path for path in self.targets if path != target)
