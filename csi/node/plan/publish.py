"""NodePublish: show a staged volume at a pod's target path, in one of three ways.

Plain filesystem: a bind mount. Block: the device node bound on a file. Direct: Kata's record, and under it a read-only
tombstone on the target, put there first, so that at every moment a runtime that misses the record fails closed.
"""

from dataclasses import dataclass
from typing import assert_never

from csi.core.errors import AlreadyExists, InUse, Refused
from csi.core.filesystem import Filesystem
from csi.node.content import HoldsFilesystem, Raw, Sealed
from csi.node.kata.record import PROFILE_KEY, SECURE_MOUNT, VOLUME_ID_KEY, Record, directory_name, guest_options
from csi.node.plan import steps
from csi.node.plan.node_view import PathKind, PathView, Publications, tombstone_owner, tombstone_source
from csi.node.plan.stage import host_mounts, named_filesystem, require_not_deleted
from csi.node.volume import Capability, State, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Publishing:
    """One NodePublish request with what the node shows around it."""

    volume: Volume
    capability: Capability
    read_only: bool
    """What the request and the access mode together ask for."""
    staging: PathView
    target: PathView
    publications: Publications
    other_stagings: tuple[str, ...] = ()
    """Other staging paths of kubelet's where it is mounted."""
    same_place: tuple[str, ...] = ()
    """Other texts of Kata's records that lead to the target."""
    node_is_right: bool
    """Whether the volume's path in /dev leads to its own kernel device."""

    @property
    def others(self) -> tuple[str, ...]:
        """The other places that show the volume."""
        return self.publications.others(self.target.path, self.target.real, *self.same_place)

    @property
    def device_read_only(self) -> bool:
        """The kernel's read-only flag of the device, which block mode uses."""
        return self.volume.live is not None and self.volume.live.read_only


def publish(view: Publishing) -> steps.Plan:
    """Steps that show the volume at the target. Raises `Refused` when it isn't staged or may have only one target."""
    require_not_deleted(view.volume)
    direct = not view.capability.block and not host_mounts(view.volume, view.capability)
    if direct:
        directory_name(view.target.path)  # too long a path is refused before anything is done
    _require_staged(view)
    if view.capability.block:
        return _publish_block(view)
    return _publish_direct(view) if direct else _publish_mount(view)


def _require_staged(view: Publishing) -> None:
    volume, staging = view.volume, view.staging
    ready = volume.state is State.READY and volume.live is not None and view.node_is_right
    if ready and host_mounts(volume, view.capability):
        ready = staging.top is not None and staging.top.device == volume.device
    if not ready:
        raise Refused(_not_staged(view))


def _not_staged(view: Publishing) -> str:
    volume = view.volume
    if volume.live is not None and volume.live.stale:
        return (
            f"volume {volume.volume_id} has a device on a disk that has gone, or has come back under another number; "
            "delete the pods that have the volume, and it is staged anew"
        )
    elsewhere = f"; it is mounted at {', '.join(view.other_stagings)}" if view.other_stagings else ""
    where = view.staging.path or "any path"
    return f"volume {volume.volume_id} is not staged at {where}{elsewhere}; call NodeStageVolume first"


def _require_exclusive(view: Publishing, *, shared: bool) -> None:
    others = view.others
    if others and not shared:
        raise InUse(
            f"volume {view.volume.volume_id} is already published at {', '.join(others)} and can't have a second target; "
            "wait until the other pod is gone, or use an access mode for several pods"
        )


def _publish_mount(view: Publishing) -> steps.Plan:
    target, top = view.target, view.target.top
    if top is not None:
        if top.device != view.volume.device:
            raise Refused(f"{target.path} is already a mount of {top.source}; unmount it, then repeat")
        if top.read_only != view.read_only:
            raise _published_otherwise(target, read_only=top.read_only)
        return ()
    _require_exclusive(view, shared=view.capability.access.many_targets)
    _require_plain_directory(target)
    return (steps.BindDirectory(source=view.staging.real, target=target.real, read_only=view.read_only),)


def _publish_block(view: Publishing) -> steps.Plan:
    volume, target = view.volume, view.target
    if target.kind is PathKind.DEVICE:
        if target.device != volume.device:
            raise Refused(f"{target.path} is another device already; unmount it, then repeat")
        if view.device_read_only != view.read_only:
            raise _published_otherwise(target, read_only=view.device_read_only)
        return ()
    if target.mounts or target.kind not in (PathKind.ABSENT, PathKind.FILE):
        raise Refused(f"{target.path} is not free for a block device ({target.kind.value}); remove it, then repeat")
    # Two guests that each take a sealed volume for their own destroy it, as with a direct one.
    _require_exclusive(view, shared=view.capability.access.many_targets and not volume.profile.is_sealed)
    if volume.profile.is_sealed:
        _require_not_held(view)
    bind = steps.BindDevice(device=volume.lv.path, target=target.real)
    if view.device_read_only == view.read_only:
        return (bind,)
    if view.others:
        raise InUse(f"volume {volume.volume_id} can't be read-only for one pod and writable for another in block mode")
    return (steps.SetReadOnly(device=volume.lv.path, read_only=view.read_only), bind)


def _publish_direct(view: Publishing) -> steps.Plan:
    volume, target = view.volume, view.target
    wanted = direct_record(volume, view.capability, read_only=view.read_only)
    present = view.publications.records.get(target.path)
    if present is not None and not present.means(wanted):
        raise AlreadyExists(f"{target.path} has a Kata record with other content; unpublish it first")
    # Two guests on one device destroy it, whatever the access mode says; QEMU's own locks don't stop them.
    _require_exclusive(view, shared=False)
    if present is None:
        _require_not_held(view)
    _require_own_tombstone(view)
    plan: list[steps.Step] = []
    if not target.is_tombstone:
        if target.mounts:
            raise Refused(f"{target.path} is already a mount; unmount it, then repeat")
        _require_plain_directory(target)
        plan.append(steps.MountTombstone(target=target.real, source=tombstone_source(volume.volume_id)))
    if present is None:
        plan.append(steps.WriteRecord(target=target.path, record=wanted))
    return tuple(plan)


def _require_own_tombstone(view: Publishing) -> None:
    for mount in view.target.mounts:
        owner = tombstone_owner(mount)
        if owner not in (None, view.volume.volume_id):
            raise Refused(f"{view.target.path} has the tombstone of volume {owner}; unpublish that one first")


def _require_not_held(view: Publishing) -> None:
    live = view.volume.live
    if live is not None and live.held:
        by = (
            f"by {', '.join(live.on_top)}, which is made on it" if live.on_top else "maybe by a guest that ends; repeat"
        )
        raise InUse(f"volume {view.volume.volume_id} is still held open on this node, {by}")


def _published_otherwise(target: PathView, *, read_only: bool) -> AlreadyExists:
    now = "read-only" if read_only else "writable"
    return AlreadyExists(f"{target.path} is published {now} already; unpublish it first")


def direct_record(volume: Volume, capability: Capability, *, read_only: bool) -> Record:
    """The record for a direct volume. For a sealed one the filesystem type is a hint that the guest checks."""
    metadata: dict[str, str] = {VOLUME_ID_KEY: volume.volume_id}
    if volume.profile.is_sealed:
        metadata[PROFILE_KEY] = volume.profile.value
    if volume.secure_mount and volume.profile.is_sealed:
        metadata |= SECURE_MOUNT
    return Record(
        device=volume.lv.path,
        fstype=_shown_filesystem(volume, capability),
        options=guest_options(capability.mount_flags, read_only=read_only),
        metadata=metadata,
    )


def _shown_filesystem(volume: Volume, capability: Capability) -> Filesystem:
    match volume.holds:
        case HoldsFilesystem(filesystem):
            return filesystem
        case Sealed() | None:
            return named_filesystem(volume, capability)
        case Raw():
            raise Refused(f"volume {volume.volume_id} holds no filesystem: it was staged as a raw device")
        case _:
            assert_never(volume.holds)


def _require_plain_directory(target: PathView) -> None:
    if target.kind not in (PathKind.ABSENT, PathKind.DIRECTORY):
        raise Refused(f"{target.path} is not a directory ({target.kind.value}); remove it, then repeat")
    if not target.empty:
        raise Refused(
            f"{target.path} is a directory with content, which a mount would hide. A pod may have written there while its "
            "volume was missing: save what is needed, empty it, and the call is repeated."
        )
