"""What CSI marks as secret never reaches the log, whichever message of the protocol carries it."""

import json

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from csi.node.rpc.proto import csi_pb2
from csi.node.rpc.redact import HIDDEN, for_log

SECRET = "hunter2"
SECRETS = [
    (message, field)
    for message in csi_pb2.DESCRIPTOR.message_types_by_name.values()
    for field in message.fields
    if field.GetOptions().Extensions[csi_pb2.csi_secret]
]


def test_the_protocol_marks_the_secrets_of_these_requests() -> None:
    assert {message.name for message, _ in SECRETS} >= {
        "CreateVolumeRequest",
        "DeleteVolumeRequest",
        "ValidateVolumeCapabilitiesRequest",
        "ControllerExpandVolumeRequest",
        "NodeStageVolumeRequest",
        "NodePublishVolumeRequest",
        "NodeExpandVolumeRequest",
    }


@pytest.mark.parametrize(("kind", "field"), SECRETS, ids=[message.name for message, _ in SECRETS])
def test_a_secret_is_shown_as_stars(kind: Descriptor, field: FieldDescriptor) -> None:
    request = GetMessageClass(kind)(**{field.name: {SECRET: SECRET}})
    assert SECRET in str(request)
    assert for_log(request) == {field.name: HIDDEN}


def test_a_secret_that_is_empty_is_left_out() -> None:
    assert for_log(csi_pb2.NodeStageVolumeRequest(volume_id="a", secrets={})) == {"volume_id": "a"}


def test_mount_flags_are_hidden_too_because_they_can_hold_credentials() -> None:
    mount = csi_pb2.VolumeCapability.MountVolume(fs_type="ext4", mount_flags=["password=hunter2"])
    request = csi_pb2.CreateVolumeRequest(volume_capabilities=[csi_pb2.VolumeCapability(mount=mount)])
    assert for_log(request) == {"volume_capabilities": [{"mount": {"fs_type": "ext4", "mount_flags": HIDDEN}}]}


@pytest.mark.parametrize("key", ["csi.storage.k8s.io/serviceAccount.tokens", "serviceAccount.tokens"])
def test_tokens_that_kubelet_puts_into_the_volume_context_are_hidden(key: str) -> None:
    context = {key: SECRET, "sealed": "xts"}
    publish = csi_pb2.NodePublishVolumeRequest(volume_context=context)
    assert for_log(publish) == {"volume_context": {key: HIDDEN, "sealed": "xts"}}
    create = csi_pb2.CreateVolumeRequest(parameters=context)
    assert for_log(create) == {"parameters": {key: HIDDEN, "sealed": "xts"}}


def test_what_is_no_secret_is_shown_as_it_is() -> None:
    request = csi_pb2.CreateVolumeRequest(
        name="pvc-1",
        capacity_range=csi_pb2.CapacityRange(required_bytes=5),
        parameters={"sealed": "xts"},
        secrets={"a": SECRET},
        accessibility_requirements=csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology(segments={"k": "v"})]),
    )
    assert for_log(request) == {
        "name": "pvc-1",
        "capacity_range": {"required_bytes": 5},
        "parameters": {"sealed": "xts"},
        "secrets": HIDDEN,
        "accessibility_requirements": {"requisite": [{"segments": {"k": "v"}}]},
    }


def test_a_list_of_words_is_a_list() -> None:
    status = csi_pb2.ListVolumesResponse.VolumeStatus(published_node_ids=["a", "b"])
    assert for_log(status) == {"published_node_ids": ["a", "b"]}


def test_fields_that_are_not_set_are_left_out() -> None:
    assert for_log(csi_pb2.NodePublishVolumeRequest()) == {}
    assert for_log(csi_pb2.NodePublishVolumeRequest(readonly=True)) == {"readonly": True}


def test_what_is_shown_can_be_written_as_json() -> None:
    answer = csi_pb2.GetCapacityResponse(available_capacity=7)
    answer.maximum_volume_size.value = 3
    assert json.loads(json.dumps(for_log(answer))) == {"available_capacity": 7, "maximum_volume_size": {"value": 3}}
