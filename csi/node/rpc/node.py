"""CSI Node: stage and publish volumes on this node, and their reverse; statistics; who this node is."""

import os
from dataclasses import replace

import grpc

from csi.core import disks
from csi.core.errors import InvalidInput, NotFound, Refused
from csi.node import erasing, observe
from csi.node.desk import Desk, View
from csi.node.jobs import Kind
from csi.node.plan import publish as publishing
from csi.node.plan import stage as staging
from csi.node.plan import steps, teardown
from csi.node.rpc import csi_requests
from csi.node.rpc.not_offered import NodeRest
from csi.node.rpc.proto import csi_pb2

_Rpc = csi_pb2.NodeServiceCapability.RPC
_CAPABILITIES = (_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.SINGLE_NODE_MULTI_WRITER)
_Unit = csi_pb2.VolumeUsage.Unit


class Node(NodeRest):
    """Each call: decode, take one view under the volume's lock, plan, apply, encode.

    Calls that aren't offered answer UNIMPLEMENTED.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

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
        settings = self._desk.settings
        return csi_pb2.NodeGetInfoResponse(
            node_id=settings.node_id,
            max_volumes_per_node=settings.max_volumes,
            accessible_topology=csi_pb2.Topology(segments={settings.topology_key: settings.topology_value}),
        )

    def NodeStageVolume(  # noqa: N802
        self, request: csi_pb2.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeStageVolumeResponse:
        """Prepare the volume at its first use, activate it, and mount a plain filesystem at the staging path."""
        wanted = csi_requests.stage(request, self._desk.roots)

        def plan(view: View) -> steps.Plan:
            csi_requests.require_same_context(view.existing, wanted.context_digest)
            where = view.around.path(wanted.staging_path)
            return staging.stage(view.existing, wanted.capability, where, node_is_right=view.node_is_right)

        task = erasing.Task(kind=Kind.PREPARE, volume_id=wanted.volume_id, plan=plan)
        erasing.carry_out(self._desk, task)
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        """Unmount and deactivate; a volume that is gone is fine."""
        path = csi_requests.path(request.staging_target_path, "staging_target_path", self._desk.roots)
        volume_id = csi_requests.volume_id(request.volume_id)
        self._desk.jobs.call_off(volume_id, Kind.PREPARE)
        with self._desk.without_lvm(volume_id, "NodeUnstageVolume") as view:
            marked = self._desk.staged_at(volume_id) is not None
            self._desk.carry_out(teardown.unstage(replace(view.unstaging(path), marked=marked)))
        return csi_pb2.NodeUnstageVolumeResponse()

    def NodePublishVolume(  # noqa: N802
        self, request: csi_pb2.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Show the staged volume at a pod's target path."""
        wanted = csi_requests.publish(request, self._desk.roots)
        with self._desk.volume(wanted.volume_id, "NodePublishVolume") as view:
            csi_requests.require_same_context(view.existing, wanted.context_digest)
            self._desk.carry_out(publishing.publish(_publishing(view, wanted)))
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take the target away; one that isn't there is fine."""
        path = csi_requests.path(request.target_path, "target_path", self._desk.roots)
        volume_id = csi_requests.volume_id(request.volume_id)
        with self._desk.without_lvm(volume_id, "NodeUnpublishVolume") as view:
            self._desk.carry_out(teardown.unpublish(view.unpublishing(path)))
        return csi_pb2.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(  # noqa: N802
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Bytes and inodes of a mounted volume, size of a block one. Of a direct one only the guest knows them."""
        if not request.volume_path:
            raise InvalidInput("volume_path", "is required and missing")
        volume_id = csi_requests.volume_id(request.volume_id)
        # kubelet asks for every volume every minute, so the kernel answers alone, and of this one path.
        path = request.volume_path
        device = disks.number(path)
        if device is not None and observe.is_volume(device, volume_id):
            usage = csi_pb2.VolumeUsage(unit=_Unit.BYTES, total=disks.size(path))
            return csi_pb2.NodeGetVolumeStatsResponse(usage=[usage])
        if observe.is_volume(observe.mounted_at(path), volume_id):
            return csi_pb2.NodeGetVolumeStatsResponse(usage=_usage(path))
        entry = self._desk.registry.at(path)
        if entry is not None and entry.record is not None and entry.record.volume_id == volume_id:
            raise Refused(f"volume {volume_id} is mounted inside a guest; only the guest can see its filesystem")
        raise NotFound(f"volume {volume_id} is not at {path}")


def _publishing(view: View, wanted: csi_requests.PublishRequest) -> publishing.Publishing:
    staging, target = view.around.path(wanted.staging_path), view.around.path(wanted.target_path)
    shown = view.publications(staging)
    stagings = view.stagings(shown)
    return publishing.Publishing(
        volume=view.existing,
        capability=wanted.capability,
        read_only=wanted.read_only or wanted.capability.read_only,
        staging=staging,
        target=target,
        publications=replace(shown, mounts=tuple(path for path in shown.mounts if path not in stagings)),
        other_stagings=stagings,
        same_place=tuple(view.around.record_owners(target, view.volume_id)),
        node_is_right=view.node_is_right,
    )


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
