"""Bringing a pool's disks into its volume group: create the group, or extend it by disks that are new and blank.

A disk with any signature is refused. It is never forced: the operator looks, and wipes it by hand if it is really free. The
one exception is a disk that LVM itself shows as labelled, empty and in no group: a killed vgcreate leaves such ones.

Disks are the same when their device numbers are: LVM may know a disk by another name than the configuration does.
"""

from dataclasses import dataclass
from typing import Final

from csi.core.device_number import DeviceNumber
from csi.core.errors import ForeignContent, NotFound
from csi.node.config import Pool
from csi.node.lvm.model import PhysicalVolume, Report
from csi.node.plan import steps

_LVM_LABEL: Final = "LVM2_member"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A disk that the configuration names: its real path, and what is on it."""

    configured: str
    real: str | None
    """The device that the configured path leads to; None when there is none."""
    holds: str | None
    """A signature, or words for other content; None when it is blank."""
    number: DeviceNumber | None = None


def onboard(pool: Pool, report: Report, devices: tuple[DeviceView, ...]) -> steps.Plan:
    """What to do so that all of the pool's disks are in its group; nothing when they are.

    Raises `NotFound` for a missing disk and `ForeignContent` for one that holds anything; then no disk is touched.
    """
    vg = report.vg(pool.vgs[0])
    members = vg.pvs if vg is not None else ()
    outside = [device for device in devices if not any(_is(pv, device) for pv in members)]
    for device in outside:
        if device.real is None:
            raise NotFound(f"pool {pool.name}: no device {device.configured}; plug it in or correct the configuration")
        _require_free(pool, report, device)
    new = tuple(dict.fromkeys(device.real for device in outside if device.real is not None))
    if not new:
        return ()
    return (steps.CreateVG(vg=pool.vgs[0], devices=new),) if vg is None else (steps.ExtendVG(vg=vg.name, devices=new),)


def _is(pv: PhysicalVolume, device: DeviceView) -> bool:
    if pv.device is not None and device.number is not None:
        return pv.device == device.number
    return pv.name in (device.real, device.configured)


def _require_free(pool: Pool, report: Report, device: DeviceView) -> None:
    """Raises `ForeignContent` unless the disk is blank, or labelled by LVM and nothing more."""
    if device.holds is None or (device.holds == _LVM_LABEL and any(_is(pv, device) for pv in report.unused)):
        return
    found = f"pool {pool.name}: {device.configured}"
    if device.holds != _LVM_LABEL:
        raise ForeignContent(
            f"{found} holds {device.holds}; it is left alone. If all of it is useless, "
            f"wipe it by hand (wipefs -a {device.configured}); the driver looks again"
        )
    owner = next((vg.name for vg in report.vgs if any(_is(pv, device) for pv in vg.pvs)), None)
    owner = owner or next((vg.name for vg in report.foreign if device.number in vg.disks), None)
    if owner is not None:
        raise ForeignContent(
            f"{found} is a disk of volume group {owner}; it is left alone. Name that group in the pool's `vgs`, take the "
            f"disk out of the group (vgreduce {owner}, then pvremove), or correct the configuration"
        )
    raise ForeignContent(
        f"{found} holds LVM2_member, and LVM shows it in no volume group; it is left alone. It may be a part of a RAID or "
        "multipath device, a copy of another disk, or belong to a group whose other disks are missing: look with "
        "`pvs --all -o +pv_in_use,pv_duplicate`, and name the whole device in the configuration"
    )
