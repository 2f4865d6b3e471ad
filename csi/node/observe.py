"""Looking at the node: paths and devices, and, among the mounts and Kata records of one moment, those around a volume.

Changes nothing, and lists nothing itself: `csi.node.desk` does so once a call. Whose a mount is, the kernel's own names of
devices say; LVM is not asked.
"""

import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from csi.core import device_mapper, disks
from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused
from csi.core.mount import Mount
from csi.node.kata.registry import Entry
from csi.node.lvm import dm_name
from csi.node.lvm.live_device import LiveDevice
from csi.node.lvm.model import LogicalVolume, Report
from csi.node.lvm.names import VolumeId
from csi.node.plan.node_view import (
    ActiveDevice,
    PathKind,
    PathView,
    Publications,
    is_tombstone,
    tombstone_owner,
)
from csi.node.plan.target import Conditions
from csi.node.plan.teardown import Place
from csi.node.volume import Volume

_DEVICE_FILESYSTEMS = ("devtmpfs", "tmpfs")
_LVM_UUID = "LVM-"
_ONE_DEVICE_TARGETS = frozenset({"linear", "striped"})
_REMOVED = "//deleted"
"""What the kernel writes behind the root of a mount whose file is gone (proc(5), mountinfo)."""


def real(path: str) -> str:
    """Where a path leads: links among its parents followed, its last component as it is. The kernel names mounts so."""
    parent, _, name = path.rpartition("/")
    return os.path.join(os.path.realpath(parent or "/"), name) if name else os.path.realpath(path)  # noqa: PTH118


def path(value: str, listed: tuple[Mount, ...]) -> PathView:
    """What lies and what is mounted at a path of a request. An empty path is an absent one.

    A mounted filesystem isn't touched: the disk below it may be gone, and to unmount it is what is asked for then.
    """
    if not value:
        return PathView(path=value)
    where = real(value)
    found = tuple(mount for mount in listed if mount.target == where)
    if found and not _is_of_devices(found[-1]):
        return PathView(path=value, leads_to=where, kind=PathKind.DIRECTORY, mounts=found)
    try:
        status = os.lstat(where)
    except FileNotFoundError:
        return PathView(path=value, leads_to=where, mounts=found)
    except OSError as error:
        raise Refused(f"{value} can't be looked at: {error.strerror}; unmount or repair it, then repeat") from error
    kind = _kind(status.st_mode)
    return PathView(
        path=value,
        leads_to=where,
        kind=kind,
        mounts=found,
        device=disks.number(where) if kind is PathKind.DEVICE else None,
        empty=_is_empty(where) if kind is PathKind.DIRECTORY else True,
    )


def place(view: PathView, volume_id: VolumeId, record_owners: Collection[str | None]) -> Place:
    """A path with whose each mount on it is. What can be nobody's any more counts as the asking volume's."""
    return Place(view=view, owners=tuple(_owner(mount, view, volume_id, record_owners) for mount in view.mounts))


def _owner(mount: Mount, view: PathView, volume_id: VolumeId, record_owners: Collection[str | None]) -> str | None:
    if is_tombstone(mount):
        of_record = next((owner for owner in record_owners if owner is not None), None)
        return tombstone_owner(mount) or of_record or volume_id
    if not _is_of_devices(mount):
        return volume_of(mount.device)
    if mount.root.endswith(_REMOVED):
        return volume_id
    return volume_of(view.device) if view.device is not None else None


def volume_of(device: DeviceNumber) -> str | None:
    """The volume whose LV a device is, by the name that LVM gave it in the kernel; None for any other device."""
    if not (disks.mapping_uuid(device) or "").startswith(_LVM_UUID):
        return None
    name = disks.mapping_name(device)
    found = dm_name.decode(name) if name is not None else None
    return found[1] if found is not None else None


def is_volume(device: DeviceNumber | None, volume_id: VolumeId) -> bool:
    """Whether a device is the volume's."""
    return device is not None and volume_of(device) == volume_id


def mounted_at(path: str) -> DeviceNumber | None:
    """The device whose filesystem is mounted on a directory; None for a path that is not the mount itself.

    Raises `OSError` when the disk below it fails.
    """
    try:
        own, above = Path(path).stat(), Path(path).parent.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if own.st_dev == above.st_dev:
        return None
    return DeviceNumber(os.major(own.st_dev), os.minor(own.st_dev))


def devices(volume_id: VolumeId) -> tuple[ActiveDevice, ...]:
    """The active devices of a volume, as the kernel alone knows them: one, or none; more when groups share a name."""
    found = []
    for name in device_mapper.names():
        parts = dm_name.decode(name)
        if parts is None or parts[1] != volume_id:
            continue
        mapping = device_mapper.status(name)
        if mapping is not None and mapping.uuid.startswith(_LVM_UUID):
            one = ActiveDevice(vg=parts[0], name=parts[1], live=_live(mapping))
            found.append(replace(one, node_is_right=disks.leads_to(one.path) == one.live.number))
    return tuple(found)


def alive(volume: Volume, report: Report) -> Volume:
    """The volume with the kernel's device of this moment."""
    live = live_device(volume.lv)
    if live is not None and _is_stale(volume.lv, report):
        live = replace(live, stale=True)
    return replace(volume, live=live)


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
    return _live(found)


def _live(found: device_mapper.Mapping) -> LiveDevice:
    return LiveDevice(
        number=found.number,
        open_count=found.open_count,
        loops=disks.loops_on(found.number),
        read_only=disks.read_only(found.number),
        suspended=found.suspended,
        mounted=disks.mounted_anywhere(found.number),
        on_top=disks.holders(found.number),
    )


def conditions(report: Report) -> Conditions:
    """What the kernel says of the disks of the groups."""
    numbers = {pv.device for vg in report.vgs for pv in vg.pvs if pv.device is not None}
    return Conditions(read_only=frozenset(number for number in numbers if disks.read_only(number)))


def _is_stale(lv: LogicalVolume, report: Report) -> bool:
    """Whether the LV's device lies on a disk that is not there, or not the group's any more."""
    below = device_mapper.lies_on(lv.mapping_name)
    if not all(disks.exists(number) for number in below):
        return True
    if not device_mapper.targets(lv.mapping_name) <= _ONE_DEVICE_TARGETS:
        return False  # it lies on other LVs
    group = report.vg(lv.vg)
    of_group = {pv.device for pv in group.pvs if pv.device is not None} if group is not None else set()
    return bool(of_group) and not below <= of_group


def node_is_right(volume: Volume) -> bool:
    """Whether the volume's path in /dev leads to its own kernel device, and that to the disks. Without udev stale nodes are
    left behind.
    """
    return volume.live is not None and not volume.live.stale and disks.leads_to(volume.lv.path) == volume.device


def publications(
    entries: Iterable[Entry],
    listed: tuple[Mount, ...],
    volume_id: VolumeId,
    devices: Collection[DeviceNumber],
    staging_path: str = "",
) -> Publications:
    """Every place that shows the volume now. `staging_path` is named as the kernel does."""
    return Publications(
        mounts=tuple(mount.target for mount in listed if mount.device in devices and mount.target != staging_path),
        devices=tuple(
            mount.target
            for mount in listed
            if devices and _is_of_devices(mount) and disks.number(mount.target) in devices
        ),
        tombstones=tuple(mount.target for mount in listed if tombstone_owner(mount) == volume_id),
        records={entry.target: entry.record for entry in entries if entry.record and _claims(entry, volume_id)},
    )


def _claims(entry: Entry, volume_id: VolumeId) -> bool:
    """Whether a record claims this volume or plugs its LV, under whatever name of the device."""
    record = entry.record
    return record is not None and (record.volume_id == volume_id or PurePosixPath(record.device).name == volume_id)


def _is_of_devices(mount: Mount) -> bool:
    """Whether a mount shows one file of a filesystem that devices lie in."""
    return mount.fstype in _DEVICE_FILESYSTEMS and mount.root != "/"


def _kind(mode: int) -> PathKind:
    if stat.S_ISDIR(mode):
        return PathKind.DIRECTORY
    if stat.S_ISREG(mode):
        return PathKind.FILE
    return PathKind.DEVICE if stat.S_ISBLK(mode) else PathKind.OTHER


def _is_empty(directory: str) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is None
