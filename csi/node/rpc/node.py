"""CSI Node: stage and publish volumes on this node, and their reverse; statistics; who this node is."""

import os

import grpc

from csi.core import disks
from csi.core.errors import InUse, InvalidInput, NotFound, Refused
from csi.node import observe
from csi.node.apply import apply
from csi.node.kata import record as kata_record
from csi.node.lvm.names import VolumeId
from csi.node.plan import provision
from csi.node.plan import publish as publishing
from csi.node.plan import stage as staging
from csi.node.plan.node_view import PathKind, PathView, Publications
from csi.node.rpc import csi_requests
from csi.node.rpc.not_offered import NodeRest
from csi.node.rpc.proto import csi_pb2
from csi.node.volume import Volume
from csi.node.world import World

_Rpc = csi_pb2.NodeServiceCapability.RPC
_CAPABILITIES = (_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.SINGLE_NODE_MULTI_WRITER)
_Unit = csi_pb2.VolumeUsage.Unit


class Node(NodeRest):
    """Each call: decode, lock, observe, plan, apply, encode. Calls that aren't offered answer UNIMPLEMENTED."""

    def __init__(self, world: World) -> None:
        self._world = world

    def NodeGetCapabilities(  # noqa: N802
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """What this version offers."""
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[csi_pb2.NodeServiceCapability(rpc=_Rpc(type=kind)) for kind in _CAPABILITIES]
        )

    def NodeGetInfo(  # noqa: N802
        self, request: csi_pb2.NodeGetInfoRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetInfoResponse:
        """Name, topology and volume limit of this node."""
        settings = self._world.settings
        return csi_pb2.NodeGetInfoResponse(
            node_id=settings.node_id,
            max_volumes_per_node=settings.max_volumes,
            accessible_topology=csi_pb2.Topology(segments={settings.topology_key: settings.topology_value}),
        )

    def NodeStageVolume(  # noqa: N802
        self, request: csi_pb2.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeStageVolumeResponse:
        """Prepare the volume at its first use, activate it, and mount a plain filesystem at the staging path."""
        wanted = csi_requests.stage(request, self._world.roots)
        with self._world.locks.hold(wanted.volume_id, "NodeStageVolume"):
            volume = self._existing(wanted.volume_id)
            csi_requests.require_same_context(volume, wanted.context_digest)
            where = observe.path(wanted.staging_path)
            plan = staging.stage(volume, wanted.capability, where, node_is_right=observe.node_is_right(volume.lv))
            apply(plan, self._world.handlers)
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        """Unmount and deactivate; a volume that is gone is fine."""
        path = csi_requests.path(request.staging_target_path, "staging_target_path", self._world.roots)
        volume_id = csi_requests.volume_id(request.volume_id)
        with self._world.locks.hold(volume_id, "NodeUnstageVolume"):
            volume = self._find(volume_id)
            shown = observe.publications(self._world.registry, volume, path)
            apply(staging.unstage(volume, observe.path(path), shown), self._world.handlers)
        return csi_pb2.NodeUnstageVolumeResponse()

    def NodePublishVolume(  # noqa: N802
        self, request: csi_pb2.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Show the staged volume at a pod's target path."""
        wanted = csi_requests.publish(request, self._world.roots)
        with self._world.locks.hold(wanted.volume_id, "NodePublishVolume"):
            volume = self._existing(wanted.volume_id)
            csi_requests.require_same_context(volume, wanted.context_digest)
            if not (wanted.capability.block or staging.host_mounts(volume, wanted.capability)):
                kata_record.directory_name(wanted.target_path)  # too long a path is refused before anything is done
            apply(publishing.publish(self._view(volume, wanted)), self._world.handlers)
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take the target away; one that isn't there is fine."""
        path = csi_requests.path(request.target_path, "target_path", self._world.roots)
        volume_id = csi_requests.volume_id(request.volume_id)
        world = self._world
        with world.locks.hold(volume_id, "NodeUnpublishVolume"):
            volume = self._find(volume_id)
            target = observe.path(path)
            shown = observe.publications(world.registry, volume)
            _require_own(volume, target)
            has_record = len(path.encode()) <= kata_record.PATH_LIMIT_BYTES and world.registry.has(path)
            plan = publishing.unpublish(target, has_record=has_record, reset_device=_to_reset(volume, target, shown))
            apply(plan, world.handlers)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(  # noqa: N802
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Bytes and inodes of a mounted volume, size of a block one. Of a direct one only the guest knows them."""
        if not request.volume_path:
            raise InvalidInput("volume_path", "is required and missing")
        volume_id = csi_requests.volume_id(request.volume_id)
        # kubelet asks for every volume every minute, so what the kernel alone can answer never waits for LVM.
        path = observe.path(request.volume_path)
        if path.kind is PathKind.DEVICE and observe.is_volume(path.device, volume_id):
            usage = csi_pb2.VolumeUsage(unit=_Unit.BYTES, total=disks.size(request.volume_path))
            return csi_pb2.NodeGetVolumeStatsResponse(usage=[usage])
        if path.top is not None and observe.is_volume(path.top.device, volume_id):
            return csi_pb2.NodeGetVolumeStatsResponse(usage=_usage(request.volume_path))
        if path.is_tombstone and observe.is_recorded(self._world.registry, path.path, volume_id):
            raise Refused(f"volume {volume_id} is mounted inside a guest; only the guest can see its filesystem")
        self._existing(volume_id)
        raise NotFound(f"volume {volume_id} is not at {request.volume_path}")

    def _find(self, volume_id: VolumeId) -> Volume | None:
        with self._world.lvm.exclusive(f"look at {volume_id}"):
            return provision.by_id(self._world.lvm.report(), volume_id)

    def _existing(self, volume_id: VolumeId) -> Volume:
        volume = self._find(volume_id)
        if volume is None:
            raise NotFound(f"there is no volume {volume_id} on this node")
        return volume

    def _view(self, volume: Volume, wanted: csi_requests.PublishRequest) -> publishing.Publishing:
        node_is_right = observe.node_is_right(volume.lv)
        return publishing.Publishing(
            volume=volume,
            capability=wanted.capability,
            read_only=wanted.read_only or wanted.capability.read_only,
            staging=observe.path(wanted.staging_path),
            target=observe.path(wanted.target_path),
            publications=observe.publications(self._world.registry, volume, wanted.staging_path),
            device_read_only=node_is_right and disks.read_only(volume.lv.path),
            node_is_right=node_is_right,
            held_open=observe.held_open(volume.lv),
        )


def _require_own(volume: Volume | None, target: PathView) -> None:
    """Raises `InUse` when the target shows another volume's device: a wrong id must not unmount somebody's data."""
    if volume is None or volume.lv.device is None or target.top is None or target.is_tombstone:
        return
    shown = target.device if target.kind is PathKind.DEVICE else target.top.device
    if shown != volume.lv.device:
        raise InUse(
            f"{target.path} shows {target.top.source}, which is not volume {volume.volume_id}; it is left alone"
        )


def _to_reset(volume: Volume | None, target: PathView, shown: Publications) -> str | None:
    """The device whose read-only flag this block publication set, when it was the last one."""
    if volume is None or target.device is None or target.device != volume.lv.device or shown.others(target.path):
        return None
    return volume.lv.path if disks.read_only(volume.lv.path) else None


def _usage(path: str) -> list[csi_pb2.VolumeUsage]:
    numbers = os.statvfs(path)
    unit = numbers.f_frsize
    return [
        csi_pb2.VolumeUsage(
            unit=_Unit.BYTES,
            total=numbers.f_blocks * unit,
            available=numbers.f_bavail * unit,
            used=(numbers.f_blocks - numbers.f_bfree) * unit,
        ),
        csi_pb2.VolumeUsage(
            unit=_Unit.INODES,
            total=numbers.f_files,
            available=numbers.f_ffree,
            used=numbers.f_files - numbers.f_ffree,
        ),
    ]
