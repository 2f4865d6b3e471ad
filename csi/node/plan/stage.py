"""NodeStage: prepare a volume once, activate it, mount a plain filesystem.

The rule that keeps data: only a volume in state `creating` is ever written to by the driver. That state means that nobody
was given the volume yet; the same LVM command that ends it adds the `formatted` tag, before anybody is.
"""

from typing import assert_never

from csi.core.errors import AlreadyExists, InUse, Refused
from csi.core.filesystem import DEFAULT, Filesystem
from csi.node.content import Content, HoldsFilesystem, Raw, Sealed, word
from csi.node.lvm import tags as volume_tags
from csi.node.plan import erase, steps
from csi.node.plan.node_view import PathView
from csi.node.volume import Capability, State, Volume


def content(volume: Volume, capability: Capability) -> Content:
    """What the volume is prepared as. A request that names no filesystem takes the one that the volume holds, or the one of
    its class.
    """
    if volume.profile.is_sealed:
        return Sealed(volume.profile)
    if capability.block:
        return Raw()
    if capability.fstype is None and isinstance(volume.holds, HoldsFilesystem):
        return volume.holds
    return HoldsFilesystem(named_filesystem(volume, capability))


def named_filesystem(volume: Volume, capability: Capability) -> Filesystem:
    """The filesystem of the request, else of the volume's class, else the driver's own choice."""
    return capability.fstype or volume.fstype or DEFAULT


def host_mounts(volume: Volume, capability: Capability) -> bool:
    """Whether the node itself mounts the filesystem; a direct or sealed one is mounted in the guest only."""
    wanted = content(volume, capability)
    match wanted:
        case HoldsFilesystem():
            return not volume.direct
        case Raw() | Sealed():
            return False
        case _:
            assert_never(wanted)


def stage(volume: Volume, capability: Capability, staging: PathView, *, node_is_right: bool) -> steps.Plan:
    """Steps that make the volume ready to publish. Raises when what is there is not what is asked for.

    `node_is_right` says whether the volume's path in /dev leads to its own kernel device now; where it doesn't, though
    the kernel has the device, activation sets it right or refuses.
    """
    _require_usable(volume)
    wanted = content(volume, capability)
    mounted = _already_staged(volume, capability, staging)
    first = volume.state is State.CREATING
    if not first:
        _require_content(volume, wanted)
    if mounted:
        return ()
    _require_free(volume, first=first, mounts=host_mounts(volume, capability))
    on = activate(volume, node_is_right=node_is_right)
    prepared = _prepare(volume, wanted) if first else ()
    if not host_mounts(volume, capability):
        return (steps.MarkStaged(volume_id=volume.volume_id, path=staging.path), *on, *prepared)
    return (*on, *prepared, *_mount(volume, wanted, capability, staging))


def require_not_deleted(volume: Volume) -> None:
    """Raises `Refused` for a volume that its owner has given up."""
    if volume.state is State.DELETING:
        raise Refused(f"volume {volume.volume_id} is being deleted and can't be used again")


def _require_usable(volume: Volume) -> None:
    require_not_deleted(volume)
    if volume.lv.partial:
        raise Refused(
            f"a disk that holds part of volume {volume.volume_id} is missing; see pvs, and bring the disk back"
        )


def _require_content(volume: Volume, wanted: Content) -> None:
    if volume.holds != wanted:
        held = word(volume.holds) if volume.holds is not None else "nothing that its tags name"
        raise Refused(
            f"volume {volume.volume_id} holds {held}, and {word(wanted)} is asked for; it is never formatted again. "
            "Ask for what it holds, or make a new volume."
        )


def _already_staged(volume: Volume, capability: Capability, staging: PathView) -> bool:
    top = staging.top
    if top is None:
        return False
    if volume.device is None or top.device != volume.device:
        raise Refused(f"{staging.path} is already a mount of {top.source}; unmount it, then repeat")
    if volume.live is not None and volume.live.stale:
        raise Refused(
            f"{staging.path} is a mount of a disk that has gone, or has come back under another number; delete the pods "
            f"that have volume {volume.volume_id}, and it is staged anew"
        )
    if not host_mounts(volume, capability):
        raise AlreadyExists(f"volume {volume.volume_id} is staged as a mounted filesystem; unstage it first")
    if top.read_only != capability.read_only:
        raise AlreadyExists(f"volume {volume.volume_id} is staged with another access mode; unstage it first")
    if capability.fstype and top.fstype != capability.fstype:
        raise AlreadyExists(f"volume {volume.volume_id} is staged as {top.fstype}, not {capability.fstype}")
    return True


def _require_free(volume: Volume, *, first: bool, mounts: bool) -> None:
    """Raises `InUse` when something has the device that would be written to, mounted or taken away."""
    live = volume.live
    if live is None or not live.is_open:
        return
    if live.stale or (live.on_top and (first or mounts)) or (first and live.mounted):
        by = ", ".join(live.on_top) or "a mount" if live.on_top or live.mounted else "a process or virtual machine"
        lost = "; its device is on a disk that has gone, or has come back under another number" if live.stale else ""
        raise InUse(
            f"volume {volume.volume_id} is in use by {by} on this node{lost}. End that, and the call is repeated"
        )


def activate(volume: Volume, *, node_is_right: bool) -> steps.Plan:
    """Steps after which the volume's path leads to its device and that to its disks; none where they do."""
    vg, name = volume.lv.vg, volume.lv.name
    on = steps.Activate(vg=vg, name=name)
    if volume.live is not None and volume.live.stale:
        return (steps.ReleaseDevice(vg=vg, name=name), on)
    return () if volume.live is not None and node_is_right else (on,)


def _mount(volume: Volume, wanted: Content, capability: Capability, staging: PathView) -> steps.Plan:
    match wanted:
        case HoldsFilesystem(filesystem):
            device = volume.lv.path
            looked: steps.Plan = (steps.RequireFilesystem(device=device, fstype=filesystem),)
            if volume.live is None or not volume.live.mounted:
                # What is mounted already, if only in another namespace, can be mounted again and not be checked.
                looked += (steps.CheckFilesystem(device=device, fstype=filesystem),)
            flags = tuple(flag for flag in capability.mount_flags if flag not in ("ro", "rw"))
            options = (*flags, *(("ro",) if capability.read_only else ()))
            mount = steps.MountFilesystem(device=device, target=staging.real, fstype=filesystem, options=options)
            return (mount,) if volume.state is State.CREATING else (*looked, mount)
        case Raw() | Sealed():
            return ()
        case _:
            assert_never(wanted)


def _prepare(volume: Volume, wanted: Content) -> steps.Plan:
    """Erase what may show former content, format a plain filesystem, see that it is there, and end `creating`."""
    done = steps.ChangeTags(
        vg=volume.lv.vg,
        name=volume.lv.name,
        remove=(volume_tags.state_tag(State.CREATING),),
        add=(volume_tags.state_tag(State.READY), volume_tags.formatted_tag(wanted)),
    )
    unused: steps.Plan = ()
    if (uuid := volume.filesystem_uuid) is not None:
        # An old backup of the group's metadata, restored, brings `creating` back over living data.
        unused = (steps.RequireUnused(device=volume.lv.path, volume_id=volume.volume_id, uuid=uuid),)
    return (*unused, *erase.before_first_use(volume, wanted), *_make(volume, wanted), done)


def _make(volume: Volume, wanted: Content) -> steps.Plan:
    device = volume.lv.path
    match wanted:
        case HoldsFilesystem(filesystem):
            return (
                steps.MakeFilesystem(
                    device=device, fstype=filesystem, options=volume.mkfs_options, uuid=volume.filesystem_uuid
                ),
                # What mkfs says it made counts only when it can be seen: a disk may lie, and options may make nothing.
                steps.RequireFilesystem(device=device, fstype=filesystem, made=volume.filesystem_uuid),
            )
        case Raw() | Sealed():
            return ()
        case _:
            assert_never(wanted)
