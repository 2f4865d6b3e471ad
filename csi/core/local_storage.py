"""What a node says of its disks, groups and volumes: its plugin writes the page, the cluster helper reads it. Pure.

The parts have the names and the meaning that open-local's NodeLocalStorage gives them in its status, so that whoever reads
those objects finds what he is used to. Sizes are bytes.
"""

from enum import StrEnum

import msgspec

from csi.core.errors import InvalidInput

PATH = "/local-storage"
"""Where the node plugin serves it, beside its metrics."""


class Condition(StrEnum):
    """How a disk, a group or a volume is; open-local's words."""

    READY = "DiskReady"
    FULL = "DiskFull"
    """No further volume fits."""
    FAULT = "DiskFault"
    """A disk is missing, or nobody can look into it now."""


class _Part(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    name: str
    total: int = 0
    condition: Condition = Condition.READY


class Device(_Part, frozen=True, kw_only=True):
    """A disk or partition, as /dev/sda."""

    media_type: str = ""
    """hdd or ssd."""
    read_only: bool = False


class LogicalVolume(_Part, frozen=True, kw_only=True):
    """An LV of any owner in a group that the driver may use."""

    vgname: str
    read_only: bool = False


class VolumeGroup(_Part, frozen=True, kw_only=True):
    """A group that the driver may use."""

    physical_volumes: tuple[str, ...] = ()
    logical_volumes: tuple[LogicalVolume, ...] = ()
    available: int = 0
    """Free bytes."""
    allocatable: int = 0
    """What volumes of the driver have there and may still take: neither the reserve nor what others hold."""


class Volume(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A volume of the driver: one LV that carries its tags."""

    id: str
    """CSI's volume id, a PersistentVolume's volumeHandle."""
    vg: str
    total: int
    deleting: bool = False
    """Its owner has given it up, and its wipe goes on."""


class Page(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """One look at a node."""

    driver: str
    node: str
    topology: str
    """The value of the driver's topology key, which PersistentVolumes of this node ask for."""
    complete: bool
    """Whether everything could be looked into. Where not, what isn't listed may be there all the same."""
    devices: tuple[Device, ...] = ()
    groups: tuple[VolumeGroup, ...] = ()
    volumes: tuple[Volume, ...] = ()


def encode(page: Page) -> bytes:
    """The page as it is served."""
    return msgspec.json.encode(page)


def decode(text: bytes, source: str) -> Page:
    """What a node said. Raises `InvalidInput` naming the source."""
    try:
        return msgspec.json.decode(text, type=Page)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise InvalidInput(source, f"is not a node's page ({error})") from error
