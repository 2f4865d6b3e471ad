"""CSI Identity: who the plugin is and whether it can work."""

import grpc

from csi import __version__
from csi.core.errors import Refused
from csi.node.rpc.proto import csi_pb2, csi_pb2_grpc
from csi.node.standing import Standing

_SERVICES = (
    csi_pb2.PluginCapability.Service.CONTROLLER_SERVICE,
    csi_pb2.PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS,
)


class Identity(csi_pb2_grpc.IdentityServicer):
    """Tells how the driver stands; it never runs LVM itself."""

    def __init__(self, driver_name: str, standing: Standing) -> None:
        self._driver_name = driver_name
        self._standing = standing

    def GetPluginInfo(  # noqa: N802
        self, request: csi_pb2.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetPluginInfoResponse:
        """Name and version."""
        return csi_pb2.GetPluginInfoResponse(name=self._driver_name, vendor_version=__version__)

    def GetPluginCapabilities(  # noqa: N802
        self, request: csi_pb2.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """Controller on the node itself, volumes bound to their node."""
        return csi_pb2.GetPluginCapabilitiesResponse(
            capabilities=[
                csi_pb2.PluginCapability(service=csi_pb2.PluginCapability.Service(type=kind)) for kind in _SERVICES
            ]
        )

    def Probe(  # noqa: N802
        self, request: csi_pb2.ProbeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ProbeResponse:
        """Not ready while starting; `FAILED_PRECONDITION` with the reason when it can't work."""
        why_not = self._standing.why_not
        if why_not is not None:
            raise Refused(why_not)
        answer = csi_pb2.ProbeResponse()
        answer.ready.value = self._standing.ready
        return answer
