"""CSI requests: protobuf messages to model objects, or `InvalidInput` that names the field.

Rules and limits: CSI specification 1.13.0, "Size limits" and each RPC's text. Secrets in requests are never read: a node
that holds no keys has no use for them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, assert_never

from csi.core.errors import AlreadyExists, InvalidInput, NoSpace, OutOfRange
from csi.core.filesystem import DEFAULT, Filesystem, make_options, traits
from csi.core.size import GIB, human
from csi.node import content
from csi.node import parameters as class_parameters
from csi.node.lvm import names as volume_names
from csi.node.lvm.names import VolumeId
from csi.node.rpc.proto import csi_pb2
from csi.node.volume import Access, Capability, Parameters, Purpose, Volume, Wanted

_DEFAULT_BYTES: Final = 1 * GIB
_LARGEST_BYTES: Final = 1 << 60
"""1 EiB: far above what LVM makes of one node's disks; a larger request is a mistake, not a lack of space."""

_MAP_LIMIT_BYTES: Final = 4096
_PATH_LIMIT_BYTES: Final = 4096
_Mode = csi_pb2.VolumeCapability.AccessMode.Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """NodeStageVolume."""

    volume_id: VolumeId
    staging_path: str
    capability: Capability
    context_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRequest:
    """NodePublishVolume. `staging_path` is empty when the caller gives none."""

    volume_id: VolumeId
    staging_path: str
    target_path: str
    capability: Capability
    read_only: bool
    context_digest: str | None


def create(request: csi_pb2.CreateVolumeRequest, node_topology: tuple[str, str]) -> Wanted:
    """What CreateVolume asks for. `node_topology` is this node's key and value, which the requirement must allow."""
    name = volume_names.checked_csi_name(request.name)
    _check_map(request.parameters, "parameters")
    if request.mutable_parameters:
        key = min(request.mutable_parameters)
        raise InvalidInput(f"mutable_parameters[{key}]", "this driver has no parameters that can be changed later")
    if request.HasField("volume_content_source"):
        raise InvalidInput("volume_content_source", "snapshots and clones are not offered by this version")
    parameters = class_parameters.parse(request.parameters)
    capabilities = tuple(
        capability(item, f"volume_capabilities[{number}]") for number, item in enumerate(request.volume_capabilities)
    )
    if not capabilities:
        raise InvalidInput("volume_capabilities", "are required and missing")
    purpose = _purpose(capabilities, parameters)
    size_bytes, limit_bytes = capacity(request.capacity_range)
    _check_smallest(capabilities, parameters, size_bytes)
    _check_mkfs_options(capabilities, parameters)
    _check_topology(request.accessibility_requirements, node_topology)
    return Wanted(
        name=name,
        volume_id=volume_names.lv_name(name),
        name_digest=volume_names.name_digest(name),
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
        parameters=parameters,
        purpose=purpose,
    )


def capability(item: csi_pb2.VolumeCapability, field: str) -> Capability:
    """One capability. Raises `InvalidInput` for a mode that a volume on one node can't serve."""
    kind = item.WhichOneof("access_type")
    if kind is None:
        raise InvalidInput(f"{field}.access_type", "is required: mount or block")
    number = item.access_mode.mode
    # A newer Kubernetes may know modes that this version has no name for.
    mode = _Mode.Name(number) if number in _Mode.values() else f"mode {number}"
    try:
        access = Access(mode)
    except ValueError:
        offered = ", ".join(one.value for one in Access)
        raise InvalidInput(f"{field}.access_mode", f"{mode} is not offered on one node; use {offered}") from None
    if kind == "block":
        return Capability(block=True, access=access)
    named = item.mount.fs_type
    fstype = Filesystem.named(named, f"{field}.mount.fs_type") if named else None
    flags = tuple(item.mount.mount_flags)
    if sum(len(flag.encode()) for flag in flags) > _MAP_LIMIT_BYTES:
        raise InvalidInput(f"{field}.mount.mount_flags", f"are longer than {_MAP_LIMIT_BYTES} bytes")
    for flag in flags:
        if not flag or "," in flag or flag in ("bind", "rbind", "remount", "loop"):
            raise InvalidInput(f"{field}.mount.mount_flags", f"{flag!r} is not allowed")
    return Capability(block=False, access=access, fstype=fstype, mount_flags=flags)


def capacity(wanted: csi_pb2.CapacityRange) -> tuple[int, int | None]:
    """The size to make and the limit, in bytes. Raises `OutOfRange` for what no disk can satisfy."""
    required, limit = wanted.required_bytes, wanted.limit_bytes
    if required < 0 or limit < 0:
        raise OutOfRange("capacity_range: sizes can't be negative")
    if limit and required > limit:
        raise OutOfRange(f"capacity_range: required_bytes {required} is above limit_bytes {limit}")
    size_bytes = required or min(_DEFAULT_BYTES, limit or _DEFAULT_BYTES)
    if size_bytes > _LARGEST_BYTES:
        raise OutOfRange(f"capacity_range: {human(size_bytes)} is more than a node's disks can hold")
    return size_bytes, limit or None


def stage(request: csi_pb2.NodeStageVolumeRequest, roots: Iterable[PurePosixPath]) -> StageRequest:
    """NodeStageVolume, with the staging path kept below `roots`."""
    return StageRequest(
        volume_id=volume_id(request.volume_id),
        staging_path=path(request.staging_target_path, "staging_target_path", roots),
        capability=_required_capability(request),
        context_digest=_context_digest(request.volume_context),
    )


def publish(request: csi_pb2.NodePublishVolumeRequest, roots: Iterable[PurePosixPath]) -> PublishRequest:
    """NodePublishVolume, with both paths kept below `roots`."""
    roots = tuple(roots)
    staging = request.staging_target_path
    return PublishRequest(
        volume_id=volume_id(request.volume_id),
        staging_path=path(staging, "staging_target_path", roots) if staging else "",
        target_path=path(request.target_path, "target_path", roots),
        capability=_required_capability(request),
        read_only=request.readonly,
        context_digest=_context_digest(request.volume_context),
    )


def volume_id(value: str) -> VolumeId:
    """A volume id that is there. Raises `NotFound` for one that this driver can't have given out."""
    if not value:
        raise InvalidInput("volume_id", "is required and missing")
    return volume_names.checked_id(value)


def path(value: str, field: str, roots: Iterable[PurePosixPath]) -> str:
    """An absolute, plain path below one of the directories that the driver may mount in. Raises `InvalidInput`."""
    if not value:
        raise InvalidInput(field, "is required and missing")
    if len(value.encode()) > _PATH_LIMIT_BYTES or "\0" in value or "\n" in value:
        raise InvalidInput(field, "is too long or contains control characters")
    plain = PurePosixPath(value)
    if not plain.is_absolute() or ".." in plain.parts or str(plain) != value:
        raise InvalidInput(field, f"{value!r} is not a plain absolute path")
    allowed = tuple(roots)
    if not any(plain.is_relative_to(root) for root in allowed):
        raise InvalidInput(
            field,
            f"{value!r} is not below {' or '.join(map(str, allowed))}; start the driver with the right --kubelet-dir",
        )
    return value


def require_same_context(volume: Volume, context_digest: str | None) -> None:
    """Raises `InvalidInput` when the PV's attributes are not those that the volume was made with."""
    if context_digest is not None and context_digest != volume.params_digest:
        raise InvalidInput(
            "volume_context",
            f"differs from the parameters that volume {volume.volume_id} was made with; a PersistentVolume's attributes "
            "must not be edited",
        )


def require_confirmed(
    volume: Volume, capabilities: Iterable[Capability], parameters: Mapping[str, str], context: Mapping[str, str]
) -> None:
    """Raises `AlreadyExists` when the volume can't serve these capabilities or has other parameters, `InvalidInput` when
    the context is not its own.
    """
    if parameters and class_parameters.digest(parameters) != volume.params_digest:
        raise AlreadyExists("the volume has other parameters")
    require_same_context(volume, _context_digest(context))
    for item in capabilities:
        if volume.holds is not None and not _serves(volume.holds, item):
            raise AlreadyExists(f"the volume holds {content.word(volume.holds)}")
        if volume.purpose is not None and not _means(volume.purpose, item):
            raise AlreadyExists(f"the volume was made as {volume.purpose.word}")


def _serves(held: content.Content, capability: Capability) -> bool:
    match held:
        case content.HoldsFilesystem(filesystem):
            return not capability.block and capability.fstype in (None, filesystem)
        case content.Raw():
            return capability.block
        case content.Sealed():
            return True
        case _:
            assert_never(held)


def _means(purpose: Purpose, capability: Capability) -> bool:
    """A capability that names no filesystem leaves it to the volume."""
    if capability.block or purpose.filesystem is None:
        return capability.block and purpose.filesystem is None
    return capability.fstype in (None, purpose.filesystem)


def _required_capability(request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest) -> Capability:
    if not request.HasField("volume_capability"):
        raise InvalidInput("volume_capability", "is required and missing")
    return capability(request.volume_capability, "volume_capability")


def _context_digest(context: Mapping[str, str]) -> str | None:
    """Digest to compare with the volume's; None where no key says anything to this version. The values themselves aren't
    read: what they say stands in the volume's tags.
    """
    return class_parameters.digest(context) if class_parameters.known_keys(context) else None


def _purpose(capabilities: tuple[Capability, ...], parameters: Parameters) -> Purpose:
    """What all of the capabilities ask for; the class names the filesystem where the request doesn't."""
    asked = {Purpose(None if item.block else item.fstype or parameters.fstype or DEFAULT) for item in capabilities}
    if len(asked) > 1:
        words = " and ".join(sorted(purpose.word for purpose in asked))
        raise InvalidInput("volume_capabilities", f"ask for {words} at once; a volume is one of them")
    return asked.pop()


def _check_smallest(capabilities: tuple[Capability, ...], parameters: Parameters, size_bytes: int) -> None:
    for item in capabilities:
        if item.block:
            continue
        filesystem = item.fstype or parameters.fstype or DEFAULT
        least = traits(filesystem).smallest_bytes
        if size_bytes < least:
            raise OutOfRange(
                f"capacity_range: {filesystem} needs at least {human(least)}, and {human(size_bytes)} are asked for"
            )


def _check_mkfs_options(capabilities: tuple[Capability, ...], parameters: Parameters) -> None:
    """The class's options must be allowed for the filesystem that the request, else the class, names."""
    for item in capabilities:
        if not item.block:
            filesystem = item.fstype or parameters.fstype or DEFAULT
            make_options(parameters.mkfs_options, filesystem, "parameters[mkfsOptions]")


def _check_map(given: Mapping[str, str], field: str) -> None:
    total = sum(len(key.encode()) + len(value.encode()) for key, value in given.items())
    if total > _MAP_LIMIT_BYTES:
        raise InvalidInput(field, f"are {total} bytes long; CSI allows {_MAP_LIMIT_BYTES}")


def _check_topology(requirement: csi_pb2.TopologyRequirement, node_topology: tuple[str, str]) -> None:
    """Raises `NoSpace` when no term that is asked for is this node: the scheduler may try another one, and with distributed
    provisioning each node gets only requests for itself.
    """
    key, value = node_topology
    wanted = [term.segments for term in requirement.requisite or requirement.preferred]
    if wanted and not any(segments.get(key) == value or not segments for segments in wanted):
        shown = "; ".join(", ".join(f"{name}={word}" for name, word in sorted(term.items())) for term in wanted)
        raise NoSpace(
            f"accessibility_requirements ask for {shown}, and this driver serves {key}={value} only; run the provisioner "
            "with --node-deployment and --strict-topology on each node"
        )
