"""The block devices that the kernel has now, from sysfs: a report of LVM is current only while these are the same.

LVM's own volumes are left out: tenants write there, and nothing below them belongs to a group. So are the parts of a RAID
or multipath device, which show the label of the whole.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

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


@dataclass(slots=True)
class BlockDevices:
    """Lists them, anew only when the kernel has announced a change since (it counts its announcements), or names have
    come or gone: whether LVM may look at a device is told by its names, and these come a moment after the announcement.
    """

    sysfs: Path = Path("/sys")
    dev: Path = Path("/dev")
    _announced: tuple[str, tuple[int, ...]] = ("", ())
    _listed: tuple[BlockDevice, ...] = field(default=())

    def now(self) -> tuple[BlockDevice, ...]:
        """All devices of some size that have a node, sorted by name."""
        changed = tuple(_changed_at(folder) for folder in (self.dev, *self._folders()))
        announced = _text(self.sysfs / "kernel/uevent_seqnum"), changed
        if not announced[0] or announced != self._announced:
            self._listed = self._list()
            self._announced = announced
        return self._listed

    def _list(self) -> tuple[BlockDevice, ...]:
        entries = sorted((self.sysfs / "class/block").iterdir())
        links = self._links()
        found = (self._device(entry, links) for entry in entries if not entry.name.startswith(_NO_DISKS))
        return tuple(device for device in found if device is not None)

    def _device(self, entry: Path, links: Mapping[DeviceNumber, list[str]]) -> BlockDevice | None:
        number, sectors = _text(entry / "dev"), _text(entry / "size")
        if not number or sectors in ("", "0") or _is_left_out(entry):
            return None
        path = self._node(entry.name, DeviceNumber.parse(number))
        return (
            BlockDevice(
                name=entry.name,
                path=path,
                number=DeviceNumber.parse(number),
                sectors=int(sectors),
                sequence=_text(entry / "diskseq"),
                links=tuple(links.get(DeviceNumber.parse(number), ())),
            )
            if path is not None
            else None
        )

    def _links(self) -> dict[DeviceNumber, list[str]]:
        """Names in udev's folders by the device that they lead to. Where no udev runs, /dev/mapper has nodes, not links."""
        found: dict[DeviceNumber, list[str]] = {}
        for folder in self._folders():
            for link in sorted(_entries(folder)):
                number = _leads_to(link)
                if number is not None:
                    found.setdefault(number, []).append(str(link))
        return found

    def _folders(self) -> list[Path]:
        return [self.dev / "mapper", self.dev / "block", *_entries(self.dev / "disk")]

    def _node(self, name: str, number: DeviceNumber) -> str | None:
        """The node with the kernel's name (which has `!` for `/`), else any that leads there."""
        usual = self.dev / name.replace("!", "/")
        paths = (usual, *(Path(entry.path) for entry in os.scandir(self.dev))) if not _is(usual, number) else (usual,)
        return next((str(path) for path in paths if _is(path, number)), None)


def suspended(name: str, sysfs: Path = Path("/sys")) -> bool:
    """Whether device-mapper holds back everything that is sent to the device."""
    return name.startswith("dm-") and _text(sysfs / "class/block" / name / "dm/suspended") == "1"


def _is_left_out(entry: Path) -> bool:
    is_volume = entry.name.startswith("dm-") and _text(entry / "dm/uuid").startswith("LVM-")
    return is_volume or any(_is_whole(holder) for holder in _entries(entry / "holders"))


def _is(path: Path, number: DeviceNumber) -> bool:
    try:
        return DeviceNumber.of_block_device(path.lstat()) == number
    except OSError:
        return False


def _leads_to(link: Path) -> DeviceNumber | None:
    try:
        return DeviceNumber.of_block_device(link.stat())
    except OSError:
        return None


def _changed_at(folder: Path) -> int:
    """When a name came or went last, in nanoseconds; 0 for a folder that isn't there."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _is_whole(holder: Path) -> bool:
    return holder.name.startswith("md") or _text(holder / "dm/uuid").startswith("mpath-")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _text(file: Path) -> str:
    """A file of sysfs; empty when it isn't there, or goes away meanwhile."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, _ATTRIBUTE_BYTES).decode().strip()
    except OSError:
        return ""
    finally:
        os.close(descriptor)
