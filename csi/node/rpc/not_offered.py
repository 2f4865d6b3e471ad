"""The CSI calls that this version does not offer. Each says so by name, so that a new one of the specification is noticed:
the type checker asks for it here or in the servicer.
"""

import grpc

from csi.core.errors import Unsupported
from csi.node.rpc.proto import csi_pb2, csi_pb2_grpc


def _refused(call: str) -> Unsupported:
    return Unsupported(f"{call} is not offered by this version of the driver; its capabilities don't name it")


class ControllerRest(csi_pb2_grpc.ControllerServicer):
    """The rest of the Controller service."""

    def ControllerPublishVolume(  # noqa: N802
        self, request: csi_pb2.ControllerPublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerPublishVolumeResponse:
        """Not offered."""
        raise _refused("ControllerPublishVolume")

    def ControllerUnpublishVolume(  # noqa: N802
        self, request: csi_pb2.ControllerUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerUnpublishVolumeResponse:
        """Not offered."""
        raise _refused("ControllerUnpublishVolume")

    def ListVolumes(  # noqa: N802
        self, request: csi_pb2.ListVolumesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListVolumesResponse:
        """Not offered."""
        raise _refused("ListVolumes")

    def ControllerListVolumeHealth(  # noqa: N802
        self, request: csi_pb2.ControllerListVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerListVolumeHealthResponse:
        """Not offered."""
        raise _refused("ControllerListVolumeHealth")

    def ControllerGetVolumeHealth(  # noqa: N802
        self, request: csi_pb2.ControllerGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetVolumeHealthResponse:
        """Not offered."""
        raise _refused("ControllerGetVolumeHealth")

    def CreateSnapshot(  # noqa: N802
        self, request: csi_pb2.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateSnapshotResponse:
        """Not offered."""
        raise _refused("CreateSnapshot")

    def DeleteSnapshot(  # noqa: N802
        self, request: csi_pb2.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteSnapshotResponse:
        """Not offered."""
        raise _refused("DeleteSnapshot")

    def ListSnapshots(  # noqa: N802
        self, request: csi_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListSnapshotsResponse:
        """Not offered."""
        raise _refused("ListSnapshots")

    def GetSnapshot(  # noqa: N802
        self, request: csi_pb2.GetSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetSnapshotResponse:
        """Not offered."""
        raise _refused("GetSnapshot")

    def ControllerExpandVolume(  # noqa: N802
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """Not offered."""
        raise _refused("ControllerExpandVolume")

    def ControllerGetVolume(  # noqa: N802
        self, request: csi_pb2.ControllerGetVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetVolumeResponse:
        """Not offered."""
        raise _refused("ControllerGetVolume")

    def ControllerModifyVolume(  # noqa: N802
        self, request: csi_pb2.ControllerModifyVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        """Not offered."""
        raise _refused("ControllerModifyVolume")


class NodeRest(csi_pb2_grpc.NodeServicer):
    """The rest of the Node service."""

    def NodeGetVolumeHealth(  # noqa: N802
        self, request: csi_pb2.NodeGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetVolumeHealthResponse:
        """Not offered."""
        raise _refused("NodeGetVolumeHealth")

    def NodeGetStorageHealth(  # noqa: N802
        self, request: csi_pb2.NodeGetStorageHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetStorageHealthResponse:
        """Not offered."""
        raise _refused("NodeGetStorageHealth")

    def NodeExpandVolume(  # noqa: N802
        self, request: csi_pb2.NodeExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """Not offered."""
        raise _refused("NodeExpandVolume")
