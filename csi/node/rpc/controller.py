"""CSI Controller, served on each node for that node's own disks: create, delete, validate, capacity."""

import grpc

from csi.core.errors import AlreadyExists, InvalidInput, NoSpace, NotFound
from csi.node import observe
from csi.node import parameters as class_parameters
from csi.node.apply import apply
from csi.node.lvm.model import Report
from csi.node.lvm.names import VolumeId
from csi.node.plan import placement, provision
from csi.node.rpc import csi_requests
from csi.node.rpc.not_offered import ControllerRest
from csi.node.rpc.proto import csi_pb2
from csi.node.volume import Volume, Wanted
from csi.node.world import World

_Rpc = csi_pb2.ControllerServiceCapability.RPC
_CAPABILITIES = (_Rpc.CREATE_DELETE_VOLUME, _Rpc.GET_CAPACITY, _Rpc.SINGLE_NODE_MULTI_WRITER)


class Controller(ControllerRest):
    """Each call: decode, lock, observe, plan, apply, encode. Calls that aren't offered answer UNIMPLEMENTED."""

    def __init__(self, world: World) -> None:
        self._world = world

    def ControllerGetCapabilities(  # noqa: N802
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """What this version offers."""
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in _CAPABILITIES]
        )

    def CreateVolume(  # noqa: N802
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        """Make the volume, or find the one that an earlier call of the same name made."""
        wanted = csi_requests.create(request, self._topology())
        world = self._world
        with (
            world.locks.hold(wanted.volume_id, "CreateVolume"),
            world.lvm.exclusive(f"CreateVolume {wanted.volume_id}"),
        ):
            report = world.lvm.report()
            existing = provision.by_name(report, wanted.name_digest)
            apply(provision.create(world.settings.config, report, wanted), world.handlers)
        return csi_pb2.CreateVolumeResponse(volume=self._encode(request, wanted, existing))

    def DeleteVolume(  # noqa: N802
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        """Wipe and remove the volume; one that isn't there is success."""
        try:
            volume_id = csi_requests.volume_id(request.volume_id)
        except NotFound:
            return csi_pb2.DeleteVolumeResponse()
        world = self._world
        with world.locks.hold(volume_id, "DeleteVolume"):
            # A wipe may take minutes, so LVM is held only for its own commands: other volumes go on meanwhile.
            report = self._report(f"DeleteVolume {volume_id}")
            volume = provision.by_id(report, volume_id)
            if volume is None:
                provision.require_all_groups(world.settings.config, report, volume_id)
            else:
                published = observe.publications(world.registry, volume).targets
                apply(provision.delete(volume, published), world.handlers)
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(  # noqa: N802
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirm what the volume can serve, or say why not in `message`."""
        volume = self._existing(csi_requests.volume_id(request.volume_id))
        if not request.volume_capabilities:
            raise InvalidInput("volume_capabilities", "are required and missing")
        try:
            wanted = [
                csi_requests.capability(item, f"volume_capabilities[{number}]")
                for number, item in enumerate(request.volume_capabilities)
            ]
            csi_requests.require_confirmed(volume, wanted, request.parameters)
        except (InvalidInput, AlreadyExists) as error:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=str(error))
        return csi_pb2.ValidateVolumeCapabilitiesResponse(
            confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    def GetCapacity(  # noqa: N802
        self, request: csi_pb2.GetCapacityRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetCapacityResponse:
        """Room for volumes of a StorageClass on this node; none where the node has no such group."""
        parameters = class_parameters.parse(request.parameters)
        key, value = self._topology()
        if request.accessible_topology.segments.get(key, value) != value:
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        config = self._world.settings.config
        try:
            groups = placement.candidates(config, self._report("GetCapacity"), parameters)
        except NoSpace:
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        answer = csi_pb2.GetCapacityResponse(available_capacity=sum(placement.available(config, vg) for vg in groups))
        answer.maximum_volume_size.value = max(placement.largest(config, vg, parameters) for vg in groups)
        return answer

    def _topology(self) -> tuple[str, str]:
        settings = self._world.settings
        return settings.topology_key, settings.topology_value

    def _report(self, holder: str) -> Report:
        with self._world.lvm.exclusive(holder):
            return self._world.lvm.report()

    def _existing(self, volume_id: VolumeId) -> Volume:
        volume = provision.by_id(self._report(f"look at {volume_id}"), volume_id)
        if volume is None:
            raise NotFound(f"there is no volume {volume_id} on this node")
        return volume

    def _encode(self, request: csi_pb2.CreateVolumeRequest, wanted: Wanted, existing: Volume | None) -> csi_pb2.Volume:
        key, value = self._topology()
        return csi_pb2.Volume(
            volume_id=existing.volume_id if existing is not None else wanted.volume_id,
            capacity_bytes=existing.size_bytes if existing is not None else wanted.size_bytes,
            # The class's parameters go into the PV, where people read them; what counts later are the LV's tags.
            volume_context=class_parameters.own_keys(request.parameters),
            accessible_topology=[csi_pb2.Topology(segments={key: value})],
        )
