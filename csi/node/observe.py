"""Looking at the node: paths and devices, and, among the mounts and Kata records of one moment, those around a volume.

Changes nothing, and lists nothing itself: `csi.node.desk` does so once a call.
"""

import os
import stat
from dataclasses import replace

from csi.core import disks
from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused
from csi.core.mount import Mount
from csi.node import device_mapper
from csi.node.kata.record import Record
from csi.node.kata.registry import Entry
from csi.node.lvm import dm_name
from csi.node.lvm.live_device import LiveDevice
from csi.node.lvm.model import LogicalVolume, Report
from csi.node.lvm.names import VolumeId
from csi.node.plan.node_view import PathKind, PathView, Publications
from csi.node.plan.target import Conditions
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


def alive(volume: Volume) -> Volume:
    """The volume with the kernel's device of this moment."""
    return replace(volume, live=live_device(volume.lv))


def live_device(lv: LogicalVolume) -> LiveDevice | None:
    """The LV's device; None while it is inactive.

    Raises `Refused` when another LV's device has this one's name: a group of the same name was here before.
    """
    found = device_mapper.status(lv.mapping_name)
    if found is None:
        return None
    if lv.mapping_uuid is not None and found.uuid != lv.mapping_uuid:
        raise Refused(
            f"the kernel's device {lv.mapping_name} is not that of {lv.vg}/{lv.name} (it is {found.uuid or 'unnamed'}); a "
            f"volume group of the same name was used before. Look at `dmsetup info {lv.mapping_name}`, and remove it when "
            "nothing needs it any more"
        )
    return LiveDevice(
        number=found.number,
        open_count=found.open_count,
        loops=disks.loops_on(found.number),
        read_only=disks.read_only(found.number),
        suspended=found.suspended,
    )


def conditions(report: Report) -> Conditions:
    """What the kernel says of the disks of the groups."""
    numbers = {pv.device for vg in report.vgs for pv in vg.pvs if pv.device is not None}
    return Conditions(read_only=frozenset(number for number in numbers if disks.read_only(number)))


def node_is_right(volume: Volume) -> bool:
    """Whether the volume's path in /dev leads to its own kernel device. Without udev stale nodes are left behind."""
    return volume.device is not None and disks.leads_to(volume.lv.path) == volume.device


def is_volume(device: DeviceNumber | None, volume_id: VolumeId) -> bool:
    """Whether a device is the volume's, by the kernel's own name of it."""
    name = disks.mapping_name(device) if device is not None else None
    found = dm_name.decode(name) if name is not None else None
    return found is not None and found[1] == volume_id


def publications(
    entries: tuple[Entry, ...], listed: tuple[Mount, ...], volume: Volume | None, staging_path: str = ""
) -> Publications:
    """Every place that shows the volume now. Without a volume, none."""
    if volume is None:
        return Publications()
    device = volume.device
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
