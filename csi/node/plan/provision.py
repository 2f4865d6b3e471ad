"""CreateVolume: (what LVM shows, what is wanted) to steps, an empty plan being idempotent success; and finding volumes."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from csi.core.errors import AlreadyExists, ForeignContent, Refused, Unavailable
from csi.node.config import NodeConfig
from csi.node.lvm import tags as volume_tags
from csi.node.lvm.model import LogicalVolume, Report
from csi.node.lvm.names import VolumeId
from csi.node.plan import placement, steps
from csi.node.plan.target import AS_RECORDED, Conditions
from csi.node.volume import State, Volume, Wanted

_FORGET: Final = (
    "take its line out of used-groups.json in kubelet's directory of this driver and restart the driver here"
)


def create(config: NodeConfig, report: Report, wanted: Wanted, now: Conditions = AS_RECORDED) -> steps.Plan:
    """Steps that make the volume exist; none when it does.

    Raises `AlreadyExists` when it exists otherwise, `Refused` while it is being deleted, `NoSpace` when nothing fits.
    """
    existing = by_name(report, wanted.name_digest, placement.may_lie_in(config, wanted.parameters))
    if existing is not None:
        _require_same(existing, wanted)
        return ()
    _require_free_name(report, wanted)
    place = placement.place(config, report, wanted.parameters, wanted.size_bytes, now)
    return (
        steps.CreateLV(
            vg=place.vg.name,
            name=wanted.volume_id,
            extents=place.extents,
            tags=volume_tags.encode(wanted),
            layout=place.layout,
            pvs=place.pvs,
        ),
    )


def by_name(report: Report, name_digest: str, doubted: Callable[[str], bool] = lambda _: True) -> Volume | None:
    """The volume that was made for a CSI name. Raises `Refused` when two groups claim it, or it is there with tags that
    this version can't read, `Unavailable` when it may be in a `doubted` group that can't be looked into.
    """
    tag = volume_tags.name_tag(name_digest)
    return _found(report, "the volume of this name", lambda lv: tag in lv.tags, doubted)


def by_id(report: Report, volume_id: VolumeId) -> Volume | None:
    """The volume with this id, found by its tags in whatever group it is.

    Raises `Refused` when two groups claim the id: to choose one could destroy or expose the other; and when an LV of ours
    has that name and tags that this version can't read: to call it absent would leak it. Raises `Unavailable` when it may
    be in a group that can't be looked into.
    """
    return _found(report, f"volume {volume_id}", lambda lv: lv.name == volume_id)


def _found(
    report: Report, what: str, is_it: Callable[[LogicalVolume], bool], doubted: Callable[[str], bool] = lambda _: True
) -> Volume | None:
    """Reads the tags of those LVs alone that can be it: a node may have a thousand, and each call looks for one."""
    here = [(lv, volume_tags.decode(lv)) for lv in report.lvs if is_it(lv)]
    found = _only([volume for _, volume in here if isinstance(volume, Volume)])
    if found is None:
        for _, other in here:
            if isinstance(other, volume_tags.Unreadable):
                raise _unreadable(other)
        report.require_readable(what, is_it, doubted)
    return found


def _only(found: Sequence[Volume]) -> Volume | None:
    if len(found) > 1:
        groups = ", ".join(sorted(volume.lv.vg for volume in found))
        raise Refused(
            f"volume {found[0].volume_id} exists in several volume groups ({groups}); "
            "remove the tag sl:v1 from the wrong one"
        )
    return found[0] if found else None


def require_gone(
    config: NodeConfig, report: Report, volume_id: str, known: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Raises where a volume that wasn't found may be there all the same: to call it deleted would leak it.

    `known` are the groups in which this node has had volumes, with their UUIDs.
    """
    _require_none_dropped(report, volume_id, known)
    _require_all_groups(config, report, volume_id, known)
    for lv in report.lvs:
        if lv.name == volume_id and config.allows(lv.vg) and not volume_tags.was_ours(lv):
            raise ForeignContent(
                f"volume group {lv.vg} holds a logical volume {lv.name} without a tag of this driver: another program made "
                f"it (open-local?), so it is not deleted. If it is that volume, and nobody needs it any more: lvremove "
                f"{lv.vg}/{lv.name}, which wipes nothing; then the call succeeds"
            )


def _require_none_dropped(report: Report, volume_id: str, known: Mapping[str, str]) -> None:
    """Raises `Refused` while a group is here in which this node has had volumes, and that the configuration means no more:
    the volume may be in it, and nobody looks there.
    """
    dropped = sorted({group.name for group in report.foreign if group.uuid in known.values()})
    if dropped:
        raise Refused(
            f"volume {volume_id} is not in any group that the configuration means, and volume group {', '.join(dropped)} "
            "is here, in which this node has had volumes, and which the configuration names no more. Name it again, in a "
            f"pool or in listConfig.vgs.include. If nobody needs a volume in it any more: {_FORGET}"
        )


def _require_all_groups(config: NodeConfig, report: Report, volume_id: str, known: Mapping[str, str]) -> None:
    """Raises `Unavailable` while a group is missing that the configuration names, or that it allows and that was used here:
    the volume may be in it, so it is not yet known to be gone. Disks may come late after a boot.
    """
    here = {vg.name for vg in report.vgs} | {group.name for group in report.unreadable}
    seen = {vg.uuid for vg in report.vgs}
    missing = sorted({vg for pool in config.pools for vg in pool.vgs} - here)
    absent = {name for name, uuid in known.items() if name not in here and uuid not in seen}
    late = sorted(vg for vg in absent if vg not in missing and config.allows(vg))
    if late:
        raise Unavailable(
            f"volume {volume_id} is not in any group that is here, and volume group {', '.join(late)}, in which this node "
            "has had volumes, is missing. Bring its disks back. If it is gone for good, exclude it in the configuration's "
            f"listConfig, or {_FORGET}"
        )
    if missing:
        raise Unavailable(
            f"volume {volume_id} is not in any group that is here, and volume group {', '.join(missing)} of this node's "
            "configuration is missing. Bring its disks back, or take it out of the configuration if it is gone for good"
        )


def _unreadable(found: volume_tags.Unreadable) -> Refused:
    return Refused(
        f"logical volume {found.lv.vg}/{found.lv.name} carries this driver's tags, and this version can't read "
        f"them ({found.why}); was it made by a newer driver? Use that one. Nothing was changed"
    )


def _require_same(existing: Volume, wanted: Wanted) -> None:
    if existing.state is State.DELETING:
        raise Refused(f"volume {existing.volume_id} is being deleted; repeat when that is done")
    if existing.lv.partial:
        raise Refused(f"volume {existing.volume_id} exists, but a disk that holds part of it is missing")
    too_small = existing.size_bytes < wanted.size_bytes
    too_large = wanted.limit_bytes is not None and existing.size_bytes > wanted.limit_bytes
    if too_small or too_large:
        raise AlreadyExists(
            f"a volume named {wanted.name!r} exists with {existing.size_bytes} bytes, which is not what is asked for "
            f"({wanted.size_bytes} bytes, at most {wanted.limit_bytes or 'any'}); use another name or the same size"
        )
    if existing.purpose is not None and existing.purpose != wanted.purpose:
        raise AlreadyExists(
            f"a volume named {wanted.name!r} exists as {existing.purpose.word}, and {wanted.purpose.word} is asked for; "
            "use another name"
        )
    if existing.params_digest != wanted.parameters.digest:
        raise AlreadyExists(
            f"a volume named {wanted.name!r} exists with other StorageClass parameters; use another name"
        )


def _require_free_name(report: Report, wanted: Wanted) -> None:
    for lv in report.lvs:
        if lv.name == wanted.volume_id:
            raise ForeignContent(
                f"volume group {lv.vg} already holds a logical volume {lv.name} that was not made for this claim; "
                "rename or remove it by hand"
            )
