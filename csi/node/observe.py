"""Looking at the node: paths and devices, and, among the mounts and Kata records of one moment, those around a volume.

Changes nothing, and lists nothing itself: `csi.node.desk` does so once a call.
"""

import os
import stat

from csi.core import disks
from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused
from csi.core.mount import Mount
from csi.node.kata.record import Record
from csi.node.kata.registry import Entry
from csi.node.lvm import dm_name
from csi.node.lvm.model import LogicalVolume
from csi.node.lvm.names import VolumeId
from csi.node.plan.node_view import PathKind, PathView, Publications
from csi.node.volume import Volume

_DEVICE_FILESYSTEMS = ("devtmpfs", "tmpfs")


def path(value: str, listed: tuple[Mount, ...]) -> PathView:
    """What lies and what is mounted at a path of a request. An empty path is an absent one."""
    if not value:
        return PathView(path=value)
    found = tuple(mount for mount in listed if mount.target == value)
    try:
        status = os.lstat(value)
    except FileNotFoundError:
        return PathView(path=value, mounts=found)
    except OSError as error:
        raise Refused(f"{value} can't be looked at: {error.strerror}; unmount or repair it, then repeat") from error
    kind = _kind(status.st_mode)
    return PathView(
        path=value,
        kind=kind,
        mounts=found,
        device=disks.number(value) if kind is PathKind.DEVICE else None,
        empty=_is_empty(value) if kind is PathKind.DIRECTORY else True,
    )


def node_is_right(lv: LogicalVolume) -> bool:
    """Whether the LV's path in /dev leads to the kernel's device of this LV. Without udev stale nodes are left behind."""
    return lv.device is not None and disks.leads_to(lv.path) == lv.device


def is_volume(device: DeviceNumber | None, volume_id: VolumeId) -> bool:
    """Whether a device is the volume's, by the kernel's own name of it."""
    name = disks.mapping_name(device) if device is not None else None
    found = dm_name.decode(name) if name is not None else None
    return found is not None and found[1] == volume_id


def held_open(lv: LogicalVolume) -> bool:
    """Whether anything has the LV open but a loop device: kubelet attaches one to every raw block volume that it maps."""
    return lv.is_open and not (lv.device is not None and disks.has_loop(lv.device))


def publications(
    entries: tuple[Entry, ...], listed: tuple[Mount, ...], volume: Volume | None, staging_path: str = ""
) -> Publications:
    """Every place that shows the volume now. Without a volume, none."""
    if volume is None:
        return Publications()
    device = volume.lv.device
    return Publications(
        mounts=tuple(
            mount.target
            for mount in listed
            if device is not None and mount.device == device and mount.target != staging_path
        ),
        devices=tuple(
            mount.target
            for mount in listed
            if device is not None and mount.fstype in _DEVICE_FILESYSTEMS and _shows(mount, device)
        ),
        records=_records(entries, volume.lv),
    )


def _records(entries: tuple[Entry, ...], lv: LogicalVolume) -> dict[str, Record]:
    """Records that plug this LV or claim this volume, under whatever name of the device."""
    return {
        entry.target: entry.record
        for entry in entries
        if entry.record is not None and (entry.record.device == lv.path or entry.record.volume_id == lv.name)
    }


def _shows(mount: Mount, device: DeviceNumber) -> bool:
    return mount.root != "/" and disks.number(mount.target) == device


def _kind(mode: int) -> PathKind:
    if stat.S_ISDIR(mode):
        return PathKind.DIRECTORY
    if stat.S_ISREG(mode):
        return PathKind.FILE
    return PathKind.DEVICE if stat.S_ISBLK(mode) else PathKind.OTHER


def _is_empty(directory: str) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is None
