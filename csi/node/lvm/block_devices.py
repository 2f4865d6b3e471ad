"""The block devices that the kernel has now, from sysfs: a report of LVM is current only while these are the same.

LVM's own volumes are left out: tenants write there, and nothing below them belongs to a group. So are the parts of a RAID
or multipath device, which show the label of the whole.
"""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from csi.core import files
from csi.core.device_number import DeviceNumber

_NO_DISKS: Final = ("ram", "sr", "fd")
_ATTRIBUTE_BYTES: Final = 4096
"""The most that an attribute of sysfs can hold (Documentation/filesystems/sysfs.rst)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """A disk, a partition, or a device on top of some."""

    name: str
    """The kernel's own name, without /dev/."""
    path: str
    """Its node in /dev."""
    number: DeviceNumber
    sectors: int
    sequence: str
    """Differs for every device that was ever under this name and number, where the kernel counts them (Linux 5.15)."""
    links: tuple[str, ...] = field(default=(), compare=False)
    """Its further names in /dev. udev makes and removes them a moment later, so they are no part of what the device is."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names by which LVM may know it."""
        return self.path, *self.links


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """What was found, and what the kernel and the folders of names said then."""

    announced: str = ""
    changed: Mapping[str, int] = field(default_factory=dict)
    """When a name came or went last in each folder."""
    links: Mapping[str, "Links"] = field(default_factory=dict)
    """By folder."""
    devices: tuple[BlockDevice, ...] = ()


@dataclass(slots=True)
class BlockDevices:
    """Lists them, anew only when the kernel has announced a change since (it counts its announcements), or names have
    come or gone: whether LVM may look at a device is told by its names, and these come a moment after the announcement.

    Paths are plain strings here: every look of every call goes through this.
    """

    sysfs: str = "/sys"
    dev: str = "/dev"
    _last: _Listing = field(default_factory=_Listing)
    """Replaced as a whole: many calls look at the same time."""

    def now(self) -> tuple[BlockDevice, ...]:
        """All devices of some size that have a node, sorted by name."""
        announced = _text(f"{self.sysfs}/kernel/uevent_seqnum")
        changed = {folder: _changed_at(folder) for folder in (self.dev, *self._folders())}
        last = self._last
        if announced and announced == last.announced and changed == last.changed:
            return last.devices
        links = self._links(changed, last)
        found = _Listing(announced=announced, changed=changed, links=links, devices=self._list(_merged(links.values())))
        self._last = found
        return found.devices

    def _links(self, changed: Mapping[str, int], last: _Listing) -> "Mapping[str, Links]":
        """Links lead elsewhere only after their folder, or one of nodes, has changed."""
        nodes = (self.dev, f"{self.dev}/mapper")
        kept = last.links if all(changed[folder] == last.changed.get(folder) for folder in nodes) else {}
        return {
            folder: kept[folder] if folder in kept and time == last.changed[folder] else _links(folder)
            for folder, time in changed.items()
            if folder != self.dev
        }

    def _list(self, links: Mapping[DeviceNumber, Sequence[str]]) -> tuple[BlockDevice, ...]:
        names = sorted(os.listdir(f"{self.sysfs}/class/block"))
        found = (self._device(name, links) for name in names if not name.startswith(_NO_DISKS))
        return tuple(device for device in found if device is not None)

    def _device(self, name: str, links: Mapping[DeviceNumber, Sequence[str]]) -> BlockDevice | None:
        entry = f"{self.sysfs}/class/block/{name}"
        sectors = _text(f"{entry}/size")
        # Most are loop devices that nothing is attached to.
        if sectors in ("", "0") or _is_left_out(entry, name):
            return None
        shown = _text(f"{entry}/dev")
        if not shown:
            return None
        number = DeviceNumber.parse(shown)
        path = self._node(name, number)
        if path is None:
            return None
        return BlockDevice(
            name=name,
            path=path,
            number=number,
            sectors=int(sectors),
            sequence=_text(f"{entry}/diskseq"),
            links=tuple(links.get(number, ())),
        )

    def _folders(self) -> list[str]:
        return [f"{self.dev}/mapper", f"{self.dev}/block", *_entries(f"{self.dev}/disk")]

    def _node(self, name: str, number: DeviceNumber) -> str | None:
        """The node with the kernel's name (which has `!` for `/`), else any that leads there."""
        usual = f"{self.dev}/{name.replace('!', '/')}"
        paths = (usual, *(entry.path for entry in os.scandir(self.dev))) if not _is(usual, number) else (usual,)
        return next((path for path in paths if _is(path, number)), None)


Links = tuple[tuple[DeviceNumber, str], ...]
"""Names in a folder with the device that each leads to."""


def _links(folder: str) -> Links:
    """Where no udev runs, /dev/mapper has nodes, not links."""
    found = ((_leads_to(link), link) for link in sorted(_entries(folder)))
    return tuple((number, link) for number, link in found if number is not None)


def _merged(folders: Iterable[Links]) -> dict[DeviceNumber, list[str]]:
    found: dict[DeviceNumber, list[str]] = {}
    for number, link in itertools.chain.from_iterable(folders):
        found.setdefault(number, []).append(link)
    return found


def suspended(name: str, sysfs: str = "/sys") -> bool:
    """Whether device-mapper holds back everything that is sent to the device."""
    return name.startswith("dm-") and _text(f"{sysfs}/class/block/{name}/dm/suspended") == "1"


def _is_left_out(entry: str, name: str) -> bool:
    is_volume = name.startswith("dm-") and _text(f"{entry}/dm/uuid").startswith("LVM-")
    return is_volume or any(_is_whole(holder) for holder in _entries(f"{entry}/holders"))


def _is(path: str, number: DeviceNumber) -> bool:
    try:
        return DeviceNumber.of_block_device(os.lstat(path)) == number
    except OSError:
        return False


def _leads_to(link: str) -> DeviceNumber | None:
    try:
        return DeviceNumber.of_block_device(os.stat(link))
    except OSError:
        return None


def _changed_at(folder: str) -> int:
    """When a name came or went last, in nanoseconds; 0 for a folder that isn't there."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _is_whole(holder: str) -> bool:
    return os.path.basename(holder).startswith("md") or _text(f"{holder}/dm/uuid").startswith("mpath-")


def _entries(folder: str) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    except OSError as error:
        files.raise_if_blind(error)
        return []


def _text(file: str) -> str:
    """A file of sysfs; empty when it isn't there, or goes away meanwhile."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        files.raise_if_blind(error)
        return ""
    try:
        return os.read(descriptor, _ATTRIBUTE_BYTES).decode(errors="surrogateescape").strip()
    except OSError:
        return ""
    finally:
        os.close(descriptor)
