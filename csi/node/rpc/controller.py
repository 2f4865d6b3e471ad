"""CSI Controller, served on each node for that node's own disks: create, delete, validate, capacity."""

import logging
from collections.abc import Mapping
from typing import Final

import grpc

from csi.core.errors import AlreadyExists, InvalidInput, NoSpace, NotFound
from csi.node import erasing
from csi.node import parameters as class_parameters
from csi.node.desk import Desk
from csi.node.jobs import Kind
from csi.node.plan import placement, provision
from csi.node.rpc import csi_requests
from csi.node.rpc.not_offered import ControllerRest
from csi.node.rpc.proto import csi_pb2
from csi.node.volume import Volume, Wanted

_log = logging.getLogger(__name__)

_MOST_MISTAKES: Final = 100
_Rpc = csi_pb2.ControllerServiceCapability.RPC
_CAPABILITIES = (_Rpc.CREATE_DELETE_VOLUME, _Rpc.GET_CAPACITY, _Rpc.SINGLE_NODE_MULTI_WRITER)


class Controller(ControllerRest):
    """Each call: decode, take one view under the volume's lock, plan, apply, encode.

    Calls that aren't offered answer UNIMPLEMENTED.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._mistaken: set[frozenset[tuple[str, str]]] = set()

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
        wanted = csi_requests.create(request, self._desk.topology)
        config = self._desk.settings.config
        report = self._desk.allocate(
            wanted.volume_id, "CreateVolume", lambda report, now: provision.create(config, report, wanted, now)
        )
        existing = provision.by_name(report, wanted.name_digest, placement.may_lie_in(config, wanted.parameters))
        return csi_pb2.CreateVolumeResponse(volume=self._encode(request, wanted, existing))

    def DeleteVolume(  # noqa: N802
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        """Wipe and remove the volume; one that isn't there is success. A wipe is a job, and goes on without a caller."""
        try:
            volume_id = csi_requests.volume_id(request.volume_id)
        except NotFound:
            return csi_pb2.DeleteVolumeResponse()
        # A first stage that still clears the volume does so for nobody.
        self._desk.jobs.call_off(volume_id, Kind.PREPARE)
        erasing.carry_out(self._desk, erasing.delete(self._desk, volume_id))
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(  # noqa: N802
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirm what the volume can serve, or say why not in `message`."""
        volume = self._desk.look(csi_requests.volume_id(request.volume_id), "ValidateVolumeCapabilities").existing
        if not request.volume_capabilities:
            raise InvalidInput("volume_capabilities", "are required and missing")
        try:
            wanted = [
                csi_requests.capability(item, f"volume_capabilities[{number}]")
                for number, item in enumerate(request.volume_capabilities)
            ]
            csi_requests.require_confirmed(volume, wanted, request.parameters, request.volume_context)
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
        """Room for volumes of a StorageClass on this node; none where the node has no such group.

        A class with a mistake gets all the room: refused here, no node would ever be chosen, and CreateVolume, whose text
        lands on the claim as an event, would never be asked.
        """
        key, value = self._desk.topology
        if request.accessible_topology.segments.get(key, value) != value:
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        config = self._desk.settings.config
        report = self._desk.lvm.report()
        now = self._desk.conditions(report)
        try:
            parameters = class_parameters.parse(request.parameters)
        except InvalidInput as error:
            self._note_mistake(request.parameters, error)
            rooms = sum(target.room for target in placement.all_targets(config, report, now))
            return csi_pb2.GetCapacityResponse(available_capacity=rooms)
        try:
            targets = placement.targets(config, report, parameters, now)
        except NoSpace:
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        answer = csi_pb2.GetCapacityResponse(available_capacity=sum(target.room for target in targets))
        answer.maximum_volume_size.value = max(target.largest(parameters) for target in targets)
        return answer

    def _note_mistake(self, given: Mapping[str, str], error: InvalidInput) -> None:
        """Once a class: the provisioner asks for each one every minute."""
        which = frozenset(given.items())
        if which not in self._mistaken and len(self._mistaken) < _MOST_MISTAKES:
            self._mistaken.add(which)
            _log.warning("a StorageClass has a mistake", extra={"error": str(error)})

    def _encode(self, request: csi_pb2.CreateVolumeRequest, wanted: Wanted, existing: Volume | None) -> csi_pb2.Volume:
        key, value = self._desk.topology
        return csi_pb2.Volume(
            volume_id=existing.volume_id if existing is not None else wanted.volume_id,
            capacity_bytes=existing.size_bytes if existing is not None else wanted.size_bytes,
            # The class's parameters go into the PV, where people read them; what counts later are the LV's tags.
            volume_context=class_parameters.own_keys(request.parameters),
            accessible_topology=[csi_pb2.Topology(segments={key: value})],
        )
