"""A volume of this driver: what a request wants, and what the tags of an LV say is there."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final
from uuid import UUID, uuid5

from csi.core.device_number import DeviceNumber
from csi.core.filesystem import DEFAULT, Filesystem
from csi.core.sealed import Profile
from csi.node.content import Content
from csi.node.lvm.layout import LINEAR, Layout
from csi.node.lvm.live_device import LiveDevice
from csi.node.lvm.model import LogicalVolume
from csi.node.lvm.names import VolumeId

_BLOCK = "block"
_FILESYSTEMS: Final = UUID("6d0f6a34-1f0b-4c5e-9d4e-2f1a7c0b8e55")
"""The namespace of filesystems' UUIDs (RFC 4122, version 5). It never changes."""


class State(StrEnum):
    """Where a volume is in its life. The order of the words is the only way through it."""

    CREATING = "creating"
    """Allocated. Nobody was ever given it, so whatever its extents hold is left over from before and may be overwritten."""
    READY = "ready"
    """Prepared by the first stage. From here on nothing ever formats or overwrites it except its deletion."""
    DELETING = "deleting"
    """Its owner has given it up; it is being wiped and can't be used again."""


class Kind(StrEnum):
    """What an LV of this driver is for."""

    VOLUME = "volume"


class Wipe(StrEnum):
    """What happens to the content when the volume is deleted (StorageClass parameter `wipe`)."""

    AUTO = "auto"
    """Sealed: the 34 MiB head is zeroed and the rest discarded, as its key is destroyed elsewhere. Plain: all zeroed."""
    ZERO = "zero"
    DISCARD = "discard"
    NONE = "none"


class Access(Enum):
    """CSI access modes that a volume on one node can serve."""

    SINGLE_NODE_WRITER = "SINGLE_NODE_WRITER"
    SINGLE_NODE_READER_ONLY = "SINGLE_NODE_READER_ONLY"
    SINGLE_NODE_SINGLE_WRITER = "SINGLE_NODE_SINGLE_WRITER"
    SINGLE_NODE_MULTI_WRITER = "SINGLE_NODE_MULTI_WRITER"

    @property
    def read_only(self) -> bool:
        """Whether the mode itself forbids writing."""
        return self is Access.SINGLE_NODE_READER_ONLY

    @property
    def many_targets(self) -> bool:
        """Whether a second pod on this node may have the volume too."""
        return self in (Access.SINGLE_NODE_MULTI_WRITER, Access.SINGLE_NODE_READER_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One CSI volume capability. `fstype` is None when the request leaves it to the driver, and for block."""

    block: bool
    access: Access
    fstype: Filesystem | None = None
    mount_flags: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        """Whether the access mode or a mount flag forbids writing."""
        return self.access.read_only or "ro" in self.mount_flags


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a volume was asked for as: a filesystem, or, with None, a raw block device."""

    filesystem: Filesystem | None

    @property
    def word(self) -> str:
        """The word for it in the volume's tag and in messages."""
        return self.filesystem.value if self.filesystem is not None else _BLOCK

    @classmethod
    def read(cls, word: str) -> "Purpose":
        """What `word` wrote. Raises `ValueError` for anything else."""
        return cls(None if word == _BLOCK else Filesystem(word))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The StorageClass parameters, checked, with defaults filled in."""

    vg_name: str | None = None
    pool: str | None = None
    layout: Layout = LINEAR
    direct: bool = False
    secure_mount: bool = False
    profile: Profile = Profile.NONE
    fstype: Filesystem | None = None
    mkfs_options: tuple[str, ...] = ()
    wipe: Wipe = Wipe.AUTO
    digest: str = ""
    """Short hex digest over what the immutable parameters mean; another spelling of the same gives the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A volume that `CreateVolume` asks for. `size_bytes` is what the pod can use and what CSI reports."""

    name: str
    volume_id: VolumeId
    name_digest: str
    size_bytes: int
    limit_bytes: int | None
    parameters: Parameters
    purpose: Purpose = Purpose(DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume that exists: an LV, what its tags say, and, where the kernel was asked, the LV's device."""

    lv: LogicalVolume
    name_digest: str
    state: State
    size_bytes: int
    params_digest: str
    profile: Profile
    direct: bool
    secure_mount: bool = False
    """Whether the record makes a stock kata-agent ask its confidential-data-hub for the mount. One without our front in its
    place formats the device then."""
    wipe: Wipe
    holds: Content | None
    """What the first stage prepared it as; None until then."""
    fstype: Filesystem | None
    """The filesystem of its class; None when the class names none."""
    mkfs_options: tuple[str, ...]
    purpose: Purpose | None = None
    """None for a volume of a version that didn't record it."""
    live: LiveDevice | None = None
    """The kernel's device at the moment of the look; None while inactive."""

    @property
    def device(self) -> DeviceNumber | None:
        """The number of the kernel's device while active."""
        return self.live.number if self.live is not None else None

    @property
    def filesystem_uuid(self) -> UUID | None:
        """The UUID of the filesystem that the node makes: derived from the LV's own, so that it tells whose it is."""
        return uuid5(_FILESYSTEMS, self.lv.uuid) if self.lv.uuid else None

    @property
    def volume_id(self) -> VolumeId:
        """The CSI volume id, which is the LV's name."""
        return VolumeId(self.lv.name)
