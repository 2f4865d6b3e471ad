"""DeleteVolume: (the volume, what is around it) to steps that mark, wipe and remove it."""

from collections.abc import Sequence

from csi.core.errors import InUse, Refused
from csi.node.lvm import tags as volume_tags
from csi.node.lvm.model import LogicalVolume, Report
from csi.node.plan import erase, steps
from csi.node.plan.stage import activate
from csi.node.volume import State, Volume


def delete(
    volume: Volume,
    report: Report,
    published: Sequence[str],
    *,
    staged_at: str | None = None,
    node_is_right: bool = False,
    was_given: bool = False,
) -> steps.Plan:
    """Steps that wipe and remove the volume. Killed anywhere and repeated, they end the same.

    `published` are paths that still show the volume, `staged_at` is where it is staged for guests; `node_is_right` says
    whether its path in /dev leads to its own device now, `was_given` whether this node remembers that a pod had it.

    Raises `InUse` when there are any, something holds the device, or
    LVM has other things that depend on the volume; and `Refused` when what is to be wiped can't be reached.
    """
    _require_unused(volume, published, staged_at)
    _require_independent(volume.lv, report)
    vg, name = volume.lv.vg, volume.lv.name
    # A note of a stage that ended by itself, as a device does that an operator has taken away.
    forget: steps.Plan = (steps.ForgetStaged(volume_id=volume.volume_id),) if staged_at is not None else ()
    release = steps.ReleaseDevice(vg=vg, name=name)
    off: steps.Plan = (release,) if volume.live is not None else ()
    erased = erase.at_deletion(volume, was_given=was_given)
    if not erased:
        # Removing is one change of LVM's: there is no middle that a mark would have to tell of.
        return (*forget, *off, steps.RemoveLV(vg=vg, name=name))
    _require_all_disks(volume)
    return (
        *_mark(volume),
        *forget,
        *activate(volume, node_is_right=node_is_right),
        # A read-only flag left by a publication would stop the wipe.
        steps.SetReadOnly(device=volume.lv.path, read_only=False),
        *erased,
        release,
        steps.RemoveLV(vg=vg, name=name),
    )


def _require_unused(volume: Volume, published: Sequence[str], staged_at: str | None) -> None:
    if published:
        raise InUse(f"volume {volume.volume_id} is still published at {', '.join(published)}; delete the pod first")
    # One that is still `creating` was given to nobody: a first stage that failed for good is never followed by an unstage.
    if staged_at is not None and volume.live is not None and volume.state is State.READY:
        raise InUse(f"volume {volume.volume_id} is still staged at {staged_at}; unstage it first")
    if volume.live is not None and volume.live.is_open:
        raise InUse(f"volume {volume.volume_id} is held open by a process or virtual machine; end it, then repeat")


def cannot_be_wiped(volume_id: str, vg: str, why: object) -> Refused:
    """What a person is told of a disk that can't be wiped, with the way out."""
    return Refused(
        f"volume {volume_id} is being deleted and can't be wiped: {why}. It is tried again. If its content may stay on the "
        f"disk as it is: lvchange --addtag {volume_tags.ABANDON_WIPE} {vg}/{volume_id}; it is then removed without a wipe"
    )


def _require_independent(lv: LogicalVolume, report: Report) -> None:
    """A snapshot keeps copies of what is wiped, and LVM would remove it with its origin without a word."""
    if lv.is_locked:
        raise InUse(
            f"LVM moves or converts volume {lv.name} now, so that its content is in two places; see lvs -a {lv.vg}. Wait "
            "for the end of that, or end it (pvmove --abort); the call is repeated"
        )
    dependants = [f"{other.vg}/{other.name}" for other in report.lvs if other.vg == lv.vg and _depends(other, lv)]
    if dependants or lv.is_origin:
        shown = ", ".join(dependants) or "a snapshot that is being merged into it"
        raise InUse(
            f"volume {lv.name} has dependants: {shown}. Somebody made them with LVM, and they hold the volume's content. "
            "Remove them with lvremove when nobody needs them; the call is repeated"
        )
    if lv.pool:
        raise InUse(
            f"volume {lv.name} lies in or behind pool {lv.vg}/{lv.pool}, which this driver did not make and which keeps "
            f"copies of its content; take it out (lvconvert --uncache {lv.vg}/{lv.name}), then repeat"
        )


def _depends(other: LogicalVolume, lv: LogicalVolume) -> bool:
    """Whether it is a snapshot of the LV, a thin volume on it, or an image that was split off a mirror and is tracked."""
    images = tuple(f"{lv.name}_{kind}_" for kind in ("rimage", "mimage"))
    return other.origin == lv.name or other.name.startswith(images)


def _mark(volume: Volume) -> steps.Plan:
    if volume.state is State.DELETING:
        return ()
    old, new = volume_tags.state_tag(volume.state), volume_tags.state_tag(State.DELETING)
    # A full metadata area takes no text that is longer than the one before: what tells its age goes for the longer word.
    remove = (old, *volume_tags.created_tags(volume.lv))
    return (steps.ChangeTags(vg=volume.lv.vg, name=volume.lv.name, remove=remove, add=(new,)),)


def _require_all_disks(volume: Volume) -> None:
    """LVM neither activates nor changes an LV whose disk is missing, but removes it if it is told to."""
    if volume.lv.partial:
        place = f"{volume.lv.vg}/{volume.lv.name}"
        raise Refused(
            f"volume {volume.volume_id} can't be wiped: a disk that holds part of it is missing. Bring the disk back. If "
            f"it is gone for good: lvremove {place}, which wipes nothing on the disks that are left"
        )
