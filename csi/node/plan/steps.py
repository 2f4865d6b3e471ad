"""The closed vocabulary of effects on a node. A plan is a tuple of these; `csi.node.effects` carries them out.

Each step can be repeated: carried out twice it leaves what it leaves once, so a killed plan is made again and goes on.
"""

from dataclasses import dataclass
from uuid import UUID

from csi.core.filesystem import Filesystem
from csi.node.kata.record import Record
from csi.node.lvm import layout
from csi.node.lvm.layout import LINEAR, Layout
from csi.node.lvm.names import VolumeId


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateLV:
    """Allocate an LV with all its tags in one LVM command; it stays inactive until the first stage."""

    vg: str
    name: str
    extents: int
    tags: tuple[str, ...]
    layout: Layout = LINEAR
    pvs: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for the log."""
        return f"create LV {self.vg}/{self.name} of {self.extents} extents ({layout.name(self.layout)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveLV:
    """Remove an LV. It is inactive and wiped by now."""

    vg: str
    name: str

    def describe(self) -> str:
        """One line for the log."""
        return f"remove LV {self.vg}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeTags:
    """Remove and add tags of an LV in one LVM command, which LVM makes durable before it returns."""

    vg: str
    name: str
    remove: tuple[str, ...]
    add: tuple[str, ...]

    def describe(self) -> str:
        """One line for the log."""
        return f"tag LV {self.vg}/{self.name}: -{' -'.join(self.remove)} +{' +'.join(self.add)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate:
    """Make the kernel device of an LV and see that its node in /dev is that very device."""

    vg: str
    name: str

    def describe(self) -> str:
        """One line for the log."""
        return f"activate {self.vg}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDevice:
    """Take the kernel device away without LVM, once no virtual machine or other program has it; waits a little for that."""

    vg: str
    name: str

    def describe(self) -> str:
        """One line for the log."""
        return f"take the device of {self.vg}/{self.name} away"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkStaged:
    """Note that a volume of guests is staged, and where: nothing else on the node shows it."""

    volume_id: VolumeId
    path: str

    def describe(self) -> str:
        """One line for the log."""
        return f"note that {self.volume_id} is staged"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetStaged:
    """Take that note away."""

    volume_id: VolumeId

    def describe(self) -> str:
        """One line for the log."""
        return f"note that {self.volume_id} is not staged any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroRange:
    """Write zeroes over a range of bytes of a device."""

    device: str
    offset: int
    length: int

    def describe(self) -> str:
        """One line for the log."""
        return f"zero {self.length} bytes of {self.device} at {self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearRange:
    """See that a range of bytes of a device reads as zeroes; written is only what doesn't yet."""

    device: str
    offset: int
    length: int

    def describe(self) -> str:
        """One line for the log."""
        return f"clear {self.length} bytes of {self.device} at {self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardRange:
    """Tell the disk that a range of bytes is not needed. A disk that knows no discard is fine, or, with `or_zero`, gets
    zeroes instead.
    """

    device: str
    offset: int
    length: int
    or_zero: bool = False

    def describe(self) -> str:
        """One line for the log."""
        return f"discard {self.length} bytes of {self.device} at {self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireUnused:
    """Refuse to go on where the filesystem of that UUID, which was made for this very volume, was ever mounted."""

    device: str
    volume_id: str
    uuid: UUID

    def describe(self) -> str:
        """One line for the log."""
        return f"see that {self.device} holds nothing that was used"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeFilesystem:
    """Format a device that was never given to anybody."""

    device: str
    fstype: Filesystem
    options: tuple[str, ...]
    uuid: UUID | None = None
    """Of the filesystem; its tool chooses where there is none."""

    def describe(self) -> str:
        """One line for the log."""
        return f"make {self.fstype} on {self.device}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireFilesystem:
    """Refuse to go on unless the device shows this filesystem: a formatted volume that shows none is a fault to report.

    `made` is the UUID of one that was made a moment ago on what was blank: its own superblock is proof enough then.
    """

    device: str
    fstype: Filesystem
    made: UUID | None = None

    def describe(self) -> str:
        """One line for the log."""
        return f"see that {self.device} holds {self.fstype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckFilesystem:
    """Let the filesystem's own tool replay and repair what it can without being asked."""

    device: str
    fstype: Filesystem

    def describe(self) -> str:
        """One line for the log."""
        return f"check {self.fstype} on {self.device}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFilesystem:
    """Mount a device on a directory, which is made if it is missing."""

    device: str
    target: str
    fstype: Filesystem
    options: tuple[str, ...]

    def describe(self) -> str:
        """One line for the log."""
        return f"mount {self.device} on {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BindDirectory:
    """Show the staged filesystem at a target directory, read-only or not, in one atomic mount."""

    source: str
    target: str
    read_only: bool

    def describe(self) -> str:
        """One line for the log."""
        return f"bind {self.source} on {self.target}{' read-only' if self.read_only else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BindDevice:
    """Show a block device as a file at a target path."""

    device: str
    target: str

    def describe(self) -> str:
        """One line for the log."""
        return f"bind device {self.device} on {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReadOnly:
    """Set or clear the kernel's read-only flag of a block device, which Kata honours."""

    device: str
    read_only: bool

    def describe(self) -> str:
        """One line for the log."""
        return f"make {self.device} {'read-only' if self.read_only else 'writable'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountTombstone:
    """Put an empty read-only tmpfs on a target directory, so that a runtime that misses the record gets EROFS."""

    target: str
    source: str
    """Names the volume."""

    def describe(self) -> str:
        """One line for the log."""
        return f"put the read-only tombstone on {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRecord:
    """Put Kata's record for a target path in place, whole or not at all."""

    target: str
    record: Record

    def describe(self) -> str:
        """One line for the log."""
        return f"write the Kata record of {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveRecord:
    """Take Kata's record of a target path away, whole."""

    target: str

    def describe(self) -> str:
        """One line for the log."""
        return f"remove the Kata record of {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmount:
    """Unmount everything on exactly this path, which names the place as the kernel does."""

    target: str

    def describe(self) -> str:
        """One line for the log."""
        return f"unmount {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveTarget:
    """Remove an empty target directory or file; anything in it is somebody's data and stops the plan."""

    target: str

    def describe(self) -> str:
        """One line for the log."""
        return f"remove {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVG:
    """Make a volume group of blank disks."""

    vg: str
    devices: tuple[str, ...]

    def describe(self) -> str:
        """One line for the log."""
        return f"create volume group {self.vg} on {', '.join(self.devices)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendVG:
    """Add blank disks to a volume group."""

    vg: str
    devices: tuple[str, ...]

    def describe(self) -> str:
        """One line for the log."""
        return f"extend volume group {self.vg} by {', '.join(self.devices)}"


Step = (
    CreateLV | RemoveLV | ChangeTags | Activate | ReleaseDevice | MarkStaged | ForgetStaged
    | ZeroRange | ClearRange | DiscardRange
    | RequireUnused | MakeFilesystem | RequireFilesystem | CheckFilesystem | MountFilesystem | BindDirectory | BindDevice
    | SetReadOnly | MountTombstone | WriteRecord | RemoveRecord | Unmount | RemoveTarget | CreateVG | ExtendVG
)  # fmt: skip
Plan = tuple[Step, ...]
