"""NodeUnpublish and NodeUnstage: what a volume shows is taken away by the kernel's own word on whose it is, without LVM.

Only what is the volume's is touched: a mount of its device, a tombstone that names it, a record that names it, and what is
left over at a path that only kubelet makes.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

from csi.core.errors import InUse
from csi.node.lvm.names import VolumeId
from csi.node.plan import steps
from csi.node.plan.node_view import ActiveDevice, PathKind, PathView, Publications


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A path of a request, and whose each mount on it is, lowest first. None is somebody else's."""

    view: PathView
    owners: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpublishing:
    """One NodeUnpublish request with what the node shows around it."""

    volume_id: VolumeId
    target: Place
    record_owners: dict[str, str | None]
    """Target path to the volume that its Kata record names, for every record that leads to this place."""
    roots: tuple[PurePosixPath, ...]
    """Kubelet's directory, by each of its names."""
    devices: tuple[ActiveDevice, ...] = ()
    publications: Publications


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstaging:
    """One NodeUnstage request with what the node shows around it."""

    volume_id: VolumeId
    staging: Place
    publications: Publications
    """Below kubelet's directory only: what others mounted elsewhere keeps the device, and nobody's pod."""
    other_stagings: tuple[str, ...] = ()
    """Where else among kubelet's staging paths the volume is mounted: kubelet's rule for the path has changed once."""
    devices: tuple[ActiveDevice, ...] = ()
    marked: bool = False
    """Whether it is noted as a staged volume of guests."""


def unpublish(wanted: Unpublishing) -> steps.Plan:
    """Steps that take the target away; none when nothing of the volume is there. Raises `InUse` when another's is."""
    target = wanted.target.view
    _require_own(wanted.volume_id, wanted.target)
    plan: list[steps.Step] = [steps.RemoveRecord(target=text) for text in _own_records(wanted)]
    if target.mounts:
        plan.append(steps.Unmount(target=target.real))
    plan += _writable_again(wanted)
    if target.mounts or (target.kind is not PathKind.ABSENT and is_kubelets_target(target.path, wanted.roots)):
        plan.append(steps.RemoveTarget(target=target.real))
    return tuple(plan)


def unstage(wanted: Unstaging) -> steps.Plan:
    """Steps that undo `stage`; none when nothing is staged. Raises `InUse` while the volume is still published.

    A filesystem that the node mounted leaves its device active: nothing else uses it, and the next stage needs no LVM.
    A device of guests goes, so that none of them can open it any more, unless its filesystem is mounted in a namespace
    that this process doesn't see: that keeps it, and needs not keep the pod.
    """
    if wanted.publications.targets:
        raise InUse(f"the volume is still published at {', '.join(wanted.publications.targets)}; unpublish it first")
    staging = wanted.staging.view
    _require_own(wanted.volume_id, wanted.staging)
    places = (*((staging.real,) if staging.mounts else ()), *wanted.other_stagings)
    plan: list[steps.Step] = [steps.Unmount(target=place) for place in places]
    for device in wanted.devices:
        if device.live.read_only and device.node_is_right:
            plan.append(steps.SetReadOnly(device=device.path, read_only=False))
        if not places and not device.live.mounted:
            plan.append(steps.ReleaseDevice(vg=device.vg, name=device.name))
    if wanted.marked:
        plan.append(steps.ForgetStaged(volume_id=wanted.volume_id))
    return tuple(plan)


def is_kubelets_target(path: str, roots: tuple[PurePosixPath, ...]) -> bool:
    """Whether kubelet makes a path of this form for a CSI volume of a pod, and for nothing else."""
    plain = PurePosixPath(path)
    return any(plain.is_relative_to(root) and _is_target(plain.relative_to(root).parts) for root in roots)


def _is_target(parts: tuple[str, ...]) -> bool:
    match parts:
        case ("pods", _, "volumes", "kubernetes.io~csi", _, "mount"):
            return True
        case ("plugins", "kubernetes.io", "csi", "volumeDevices", "publish", _, _):
            return True
        case _:
            return False


def _require_own(volume_id: VolumeId, place: Place) -> None:
    for mount, owner in zip(place.view.mounts, place.owners, strict=True):
        if owner != volume_id:
            whose = f"volume {owner}" if owner is not None else mount.source
            raise InUse(f"{place.view.path} shows {whose}, which is not volume {volume_id}; it is left alone")


def _own_records(wanted: Unpublishing) -> list[str]:
    """Records of this volume at the target, and unreadable ones under a tombstone of it."""
    own = []
    for text, owner in wanted.record_owners.items():
        if owner == wanted.volume_id or (owner is None and wanted.target.view.is_tombstone):
            own.append(text)
        elif owner is not None:
            raise InUse(f"{text} has the Kata record of volume {owner}, not {wanted.volume_id}; it is left alone")
    return own


def _writable_again(wanted: Unpublishing) -> list[steps.Step]:
    """A device's read-only flag goes with the last target that shows it."""
    target = wanted.target.view
    if wanted.publications.others(target.path, target.real, *wanted.record_owners):
        return []
    return [
        steps.SetReadOnly(device=device.path, read_only=False)
        for device in wanted.devices
        if device.live.read_only and device.node_is_right
    ]
