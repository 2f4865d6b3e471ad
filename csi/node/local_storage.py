"""The node's page for the cluster helper: LVM's report and the kernel's list of disks in the words of that page. Pure."""

from collections.abc import Iterable

from csi.core.local_storage import Condition, Device, LogicalVolume, Page, Volume, VolumeGroup
from csi.node.config import NodeConfig
from csi.node.lvm import tags
from csi.node.lvm.model import LogicalVolume as Record
from csi.node.lvm.model import Report, UnreadableGroup
from csi.node.plan import placement
from csi.node.plan.target import Conditions, Target
from csi.node.volume import State


def page(
    *,
    driver: str,
    node: str,
    topology: str,
    config: NodeConfig,
    report: Report,
    conditions: Conditions,
    devices: Iterable[Device],
) -> Page:
    """What this node is and holds at the moment of the report."""
    targets = placement.all_targets(config, report, conditions)
    unreadable = [_unreadable(group) for group in report.unreadable]
    return Page(
        driver=driver,
        node=node,
        topology=topology,
        # In a group that isn't listed as one of this node's there may be any volume.
        complete=not (report.unreadable or report.strangers or report.ambiguous),
        devices=tuple(devices),
        groups=tuple(sorted([_group(target) for target in targets] + unreadable, key=lambda group: group.name)),
        volumes=tuple(shown for lv in report.lvs if (shown := _volume(lv)) is not None),
    )


def _group(target: Target) -> VolumeGroup:
    vg = target.vg
    own = sum(lv.size_bytes for lv in vg.lvs if tags.was_ours(lv))
    fault = vg.missing_disks or vg.exported or not vg.writable
    return VolumeGroup(
        name=vg.name,
        total=vg.size_bytes,
        available=vg.free_bytes,
        allocatable=own + target.room,
        physical_volumes=tuple(sorted(pv.name for pv in vg.pvs)),
        logical_volumes=tuple(_logical_volume(lv) for lv in sorted(vg.lvs, key=lambda lv: lv.name)),
        condition=Condition.FAULT if fault else Condition.READY if target.room else Condition.FULL,
    )


def _unreadable(group: UnreadableGroup) -> VolumeGroup:
    known = tuple(_logical_volume(lv) for lv in group.lvs or ())
    return VolumeGroup(name=group.name, physical_volumes=group.disks, logical_volumes=known, condition=Condition.FAULT)


def _logical_volume(lv: Record) -> LogicalVolume:
    return LogicalVolume(
        name=lv.name,
        vgname=lv.vg,
        total=lv.size_bytes,
        condition=Condition.FAULT if lv.partial else Condition.READY,
    )


def _volume(lv: Record) -> Volume | None:
    """None for an LV of somebody else. One whose tags can't be read is there, too."""
    found = tags.decode(lv)
    if found is None:
        return None
    deleting = not isinstance(found, tags.Unreadable) and found.state is State.DELETING
    return Volume(id=lv.name, vg=lv.vg, total=lv.size_bytes, deleting=deleting)
