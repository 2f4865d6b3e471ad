"""What a caller of the CSI socket may rely on: codes, messages, repeats, locks, what is logged and what never is."""

import copy
import ctypes
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi import __version__
from csi.core import errors
from csi.core.size import MIB
from csi.node import main
from csi.node import parameters as class_parameters
from csi.node.plan import steps
from csi.node.rpc.proto import csi_pb2
from tests.fakes.csi_server import PATIENCE, CsiServer, serving

ROOT = Path(__file__).resolve().parents[2]
Code = grpc.StatusCode
Mode = csi_pb2.VolumeCapability.AccessMode.Mode
Capability = csi_pb2.VolumeCapability
SIZE = 400 * MIB
NAME = "pvc-1"
NODE_KEY = "topology.sealed-local.csi/node"

KINDS: dict[str, tuple[dict[str, str], bool, str]] = {
    "ext4": ({}, False, "ext4"),
    "xfs": ({}, False, "xfs"),
    "block": ({}, True, ""),
    "direct": ({"direct": "true"}, False, "ext4"),
    "sealed": ({"sealed": "xts"}, False, "ext4"),
    "sealed-block": ({"sealed": "xts"}, True, ""),
}

# The step in which a call of the life of an ext4 volume is held, to be the one that runs.
HELD = {
    "CreateVolume": steps.CreateLV,
    "NodeStageVolume": steps.MakeFilesystem,
    "NodePublishVolume": steps.BindDirectory,
    "NodeUnpublishVolume": steps.Unmount,
    "NodeUnstageVolume": steps.Unmount,
    "DeleteVolume": steps.RemoveLV,
}
LIFE = tuple(HELD)

NOT_OFFERED = {
    "ControllerPublishVolume": csi_pb2.ControllerPublishVolumeRequest,
    "ControllerUnpublishVolume": csi_pb2.ControllerUnpublishVolumeRequest,
    "ListVolumes": csi_pb2.ListVolumesRequest,
    "ControllerListVolumeHealth": csi_pb2.ControllerListVolumeHealthRequest,
    "ControllerGetVolumeHealth": csi_pb2.ControllerGetVolumeHealthRequest,
    "CreateSnapshot": csi_pb2.CreateSnapshotRequest,
    "DeleteSnapshot": csi_pb2.DeleteSnapshotRequest,
    "ListSnapshots": csi_pb2.ListSnapshotsRequest,
    "GetSnapshot": csi_pb2.GetSnapshotRequest,
    "ControllerExpandVolume": csi_pb2.ControllerExpandVolumeRequest,
    "ControllerGetVolume": csi_pb2.ControllerGetVolumeRequest,
    "ControllerModifyVolume": csi_pb2.ControllerModifyVolumeRequest,
    "NodeGetVolumeHealth": csi_pb2.NodeGetVolumeHealthRequest,
    "NodeGetStorageHealth": csi_pb2.NodeGetStorageHealthRequest,
    "NodeExpandVolume": csi_pb2.NodeExpandVolumeRequest,
}


@pytest.fixture
def csi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CsiServer]:
    with serving(tmp_path, monkeypatch) as made:
        yield made


def capability(
    kind: str = "ext4", mode: int = Mode.SINGLE_NODE_SINGLE_WRITER, flags: tuple[str, ...] = ()
) -> Capability:
    _, block, fstype = KINDS[kind]
    access = Capability.AccessMode(mode=mode)
    if block:
        return Capability(access_mode=access, block=Capability.BlockVolume())
    return Capability(access_mode=access, mount=Capability.MountVolume(fs_type=fstype, mount_flags=flags))


ADDED_BY_KUBERNETES = {
    # external-provisioner puts the first into every PV's attributes, kubelet the others (podInfoOnMount, tokens).
    "storage.kubernetes.io/csiProvisionerIdentity": "1795550000000-8081-sealed-local.csi",
    "csi.storage.k8s.io/pod.name": "pod-1",
    "csi.storage.k8s.io/ephemeral": "false",
}


class Requests:
    """Complete requests about one volume, as the provisioner and kubelet make them."""

    def __init__(self, csi: CsiServer, kind: str = "ext4", name: str = NAME) -> None:
        self.kind, self.name = kind, name
        self.staging = f"{csi.kubelet}/plugins/{name}/globalmount"
        self.target = f"{csi.kubelet}/pods/p1/volumes/kubernetes.io~csi/{name}/mount"

    def of(self, call: str, **changes: Any) -> Any:
        """The request of a call, with other values in some fields; None leaves a field out."""
        request = self._plain(call)
        for field, value in changes.items():
            request.ClearField(field)
            if isinstance(value, (list, tuple)):
                getattr(request, field).extend(value)
            elif isinstance(value, dict):
                getattr(request, field).update(value)
            elif hasattr(value, "DESCRIPTOR"):
                getattr(request, field).CopyFrom(value)
            elif value is not None:
                setattr(request, field, value)
        return request

    def _plain(self, call: str) -> Any:
        parameters = KINDS[self.kind][0]
        wanted = capability(self.kind)
        made: dict[str, Callable[[], Any]] = {
            "CreateVolume": lambda: csi_pb2.CreateVolumeRequest(
                name=self.name,
                capacity_range=csi_pb2.CapacityRange(required_bytes=SIZE),
                volume_capabilities=[wanted],
                parameters=parameters,
            ),
            "DeleteVolume": lambda: csi_pb2.DeleteVolumeRequest(volume_id=self.name),
            "ValidateVolumeCapabilities": lambda: csi_pb2.ValidateVolumeCapabilitiesRequest(
                volume_id=self.name, volume_capabilities=[wanted]
            ),
            "GetCapacity": lambda: csi_pb2.GetCapacityRequest(volume_capabilities=[wanted], parameters=parameters),
            "NodeStageVolume": lambda: csi_pb2.NodeStageVolumeRequest(
                volume_id=self.name,
                staging_target_path=self.staging,
                volume_capability=wanted,
                volume_context=parameters | ADDED_BY_KUBERNETES,
            ),
            "NodeUnstageVolume": lambda: csi_pb2.NodeUnstageVolumeRequest(
                volume_id=self.name, staging_target_path=self.staging
            ),
            "NodePublishVolume": lambda: csi_pb2.NodePublishVolumeRequest(
                volume_id=self.name,
                staging_target_path=self.staging,
                target_path=self.target,
                volume_capability=wanted,
                volume_context=parameters | ADDED_BY_KUBERNETES,
            ),
            "NodeUnpublishVolume": lambda: csi_pb2.NodeUnpublishVolumeRequest(
                volume_id=self.name, target_path=self.target
            ),
            "NodeGetVolumeStats": lambda: csi_pb2.NodeGetVolumeStatsRequest(
                volume_id=self.name, volume_path=self.target
            ),
        }
        return made[call]()


def live(csi: CsiServer, until: str, kind: str = "ext4") -> Requests:
    """Bring a volume to where `until` is the next call of its life."""
    requests = Requests(csi, kind)
    for call in LIFE[: LIFE.index(until)]:
        csi.call(call, requests.of(call))
    return requests


def size(required: int, limit: int = 0) -> csi_pb2.CapacityRange:
    return csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)


# What is missing or wrong in a request


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("CreateVolume", "name"),
        ("CreateVolume", "volume_capabilities"),
        ("DeleteVolume", "volume_id"),
        ("ValidateVolumeCapabilities", "volume_id"),
        ("ValidateVolumeCapabilities", "volume_capabilities"),
        ("NodeStageVolume", "volume_id"),
        ("NodeStageVolume", "staging_target_path"),
        ("NodeStageVolume", "volume_capability"),
        ("NodeUnstageVolume", "volume_id"),
        ("NodeUnstageVolume", "staging_target_path"),
        ("NodePublishVolume", "volume_id"),
        ("NodePublishVolume", "target_path"),
        ("NodePublishVolume", "volume_capability"),
        ("NodeUnpublishVolume", "volume_id"),
        ("NodeUnpublishVolume", "target_path"),
        ("NodeGetVolumeStats", "volume_id"),
        ("NodeGetVolumeStats", "volume_path"),
    ],
)
def test_a_missing_field_is_named(csi: CsiServer, call: str, field: str) -> None:
    requests = live(csi, "NodeUnpublishVolume")
    before = copy.deepcopy(csi.node)
    code, message = csi.refused(call, requests.of(call, **{field: None}))
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith(f"{field}:")
    assert csi.node == before


WRONG: list[tuple[str, str, Any, str]] = [
    ("CreateVolume", "name", "n" * 129, "name"),
    ("CreateVolume", "name", "line\nbreak", "name"),
    ("CreateVolume", "volume_capabilities", [Capability()], "volume_capabilities[0].access_type"),
    ("CreateVolume", "volume_capabilities", [capability(), Capability()], "volume_capabilities[1].access_type"),
    ("CreateVolume", "volume_capabilities", [capability(mode=Mode.UNKNOWN)], "volume_capabilities[0].access_mode"),
    (
        "CreateVolume",
        "volume_capabilities",
        [capability(mode=Mode.MULTI_NODE_MULTI_WRITER)],
        "volume_capabilities[0].access_mode",
    ),
    ("CreateVolume", "volume_capabilities", [capability(), capability("block")], "volume_capabilities"),
    (
        "CreateVolume",
        "volume_capabilities",
        [Capability(access_mode=capability().access_mode, mount=Capability.MountVolume(fs_type="btrfs"))],
        "volume_capabilities[0].mount.fs_type",
    ),
    ("CreateVolume", "parameters", {"volumeTyp": "LVM"}, "parameters[volumeTyp]"),
    ("CreateVolume", "parameters", {"iops": "100"}, "parameters[iops]"),
    ("CreateVolume", "parameters", {"sealed": "xts", "direct": "false"}, "parameters[direct]"),
    ("CreateVolume", "parameters", {"pool": "x" * 5000}, "parameters"),
    ("CreateVolume", "mutable_parameters", {"iops": "100"}, "mutable_parameters[iops]"),
    (
        "CreateVolume",
        "volume_content_source",
        csi_pb2.VolumeContentSource(snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id="s")),
        "volume_content_source",
    ),
    ("NodeStageVolume", "staging_target_path", "relative/path", "staging_target_path"),
    ("NodeStageVolume", "staging_target_path", "/etc", "staging_target_path"),
    ("NodeStageVolume", "volume_capability", capability(flags=("bind",)), "volume_capability.mount.mount_flags"),
    ("NodeStageVolume", "volume_capability", capability(flags=("ro,suid",)), "volume_capability.mount.mount_flags"),
    ("NodeStageVolume", "volume_context", {"direct": "true"}, "volume_context"),
    ("NodePublishVolume", "target_path", "/etc/cron.d", "target_path"),
    ("NodePublishVolume", "staging_target_path", "/root", "staging_target_path"),
    ("NodePublishVolume", "volume_context", {"direct": "true"}, "volume_context"),
    ("NodeUnpublishVolume", "target_path", "/", "target_path"),
    ("NodeUnstageVolume", "staging_target_path", "/var/lib", "staging_target_path"),
]


@pytest.mark.parametrize(("call", "field", "value", "named"), WRONG)
def test_a_wrong_field_is_named_and_nothing_is_touched(
    csi: CsiServer, call: str, field: str, value: object, named: str
) -> None:
    requests = live(csi, "NodeUnpublishVolume")
    before = copy.deepcopy(csi.node)
    code, message = csi.refused(call, requests.of(call, **{field: value}))
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith(f"{named}:")
    assert csi.node == before


@pytest.mark.parametrize("call", ["NodeStageVolume", "NodeUnstageVolume", "NodePublishVolume", "NodeUnpublishVolume"])
def test_a_path_that_climbs_out_of_the_kubelet_directory_is_refused(csi: CsiServer, call: str) -> None:
    requests = live(csi, "NodeUnpublishVolume")
    field = "target_path" if "ublish" in call else "staging_target_path"
    for path in (f"{csi.kubelet}/../etc", f"{csi.kubelet}/./pods", f"{csi.kubelet}-other/pods", f"{csi.kubelet}/a\0b"):
        code, message = csi.refused(call, requests.of(call, **{field: path}))
        assert code is Code.INVALID_ARGUMENT
        assert message.startswith(f"{field}:")


@pytest.mark.parametrize("call", ["NodeStageVolume", "NodePublishVolume"])
def test_attributes_of_a_volume_that_somebody_edited_are_refused(csi: CsiServer, call: str) -> None:
    requests = live(csi, "NodeUnpublishVolume", "sealed")
    code, message = csi.refused(call, requests.of(call, volume_context={"sealed": "none", "direct": "true"}))
    assert (code, message.split(":")[0]) == (Code.INVALID_ARGUMENT, "volume_context")


def test_a_volume_of_a_later_or_laxer_version_is_staged_and_published(csi: CsiServer) -> None:
    """Its class had keys and words that this version doesn't know: what counts stands in tags. Of the keys that are known
    the digest is compared.
    """
    context = {"later": "key", "lvmType": "raid7", "fsType": "zfs", "wipe": ""}
    requests = live(csi, "NodeStageVolume")
    lv = csi.node.lvs["pvc-1"]
    tags = {tag for tag in lv.tags if not tag.startswith("sl:params=")}
    csi.node.lvs["pvc-1"] = replace(
        lv, tags=frozenset({*tags, f"sl:params={class_parameters.digest(context)}", "sl:later=1"})
    )
    for call in ("NodeStageVolume", "NodePublishVolume"):
        csi.call(call, requests.of(call, volume_context=context))
        csi.call(call, requests.of(call, volume_context={**context, "added": "by somebody"}))
        code, _ = csi.refused(call, requests.of(call, volume_context={**context, "lvmType": "raid6"}))
        assert code is Code.INVALID_ARGUMENT


def test_the_filesystem_of_the_class_is_made_though_no_later_call_names_it(csi: CsiServer) -> None:
    requests, silent = Requests(csi), capability()
    silent.mount.fs_type = ""
    csi.call("CreateVolume", requests.of("CreateVolume", parameters={"fsType": "xfs"}, volume_capabilities=[silent]))
    csi.call("NodeStageVolume", requests.of("NodeStageVolume", volume_capability=silent))
    assert csi.node.content["pvc-1"] == "empty xfs"


def test_a_misspelt_parameter_is_answered_with_the_nearest_known_one(csi: CsiServer) -> None:
    code, message = csi.refused("CreateVolume", Requests(csi).of("CreateVolume", parameters={"vgname": "vg0"}))
    assert code is Code.INVALID_ARGUMENT
    assert "did you mean 'vgName'?" in message


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("ext4", size(2 * MIB, limit=1 * MIB)),
        ("ext4", size(-1)),
        ("ext4", size(1, limit=-1)),
        ("ext4", size(1 << 62)),
        ("xfs", size(100 * MIB)),
    ],
)
def test_a_size_that_no_disk_can_satisfy_is_out_of_range(csi: CsiServer, kind: str, wanted: object) -> None:
    code, message = csi.refused("CreateVolume", Requests(csi, kind).of("CreateVolume", capacity_range=wanted))
    assert code is Code.OUT_OF_RANGE
    assert message.startswith("capacity_range:")
    assert not csi.node.lvs


def test_bytes_that_are_no_request_end_in_an_error_and_the_server_lives(csi: CsiServer) -> None:
    raw = csi.channel.unary_unary("/csi.v1.Controller/CreateVolume")
    with pytest.raises(grpc.RpcError) as caught:
        raw(b"\xff\xff\xff", timeout=PATIENCE)
    csi.checked_status(caught.value)
    assert csi.call("GetPluginInfo", csi_pb2.GetPluginInfoRequest()).name


# Volumes that are not there


@pytest.mark.parametrize("volume_id", ["pvc-unknown", "../etc", "x" * 200, "größe"])
@pytest.mark.parametrize(
    "call", ["ValidateVolumeCapabilities", "NodeStageVolume", "NodePublishVolume", "NodeGetVolumeStats"]
)
def test_an_unknown_volume_is_not_found(csi: CsiServer, call: str, volume_id: str) -> None:
    code, _ = csi.refused(call, Requests(csi).of(call, volume_id=volume_id))
    assert code is Code.NOT_FOUND


@pytest.mark.parametrize("volume_id", ["pvc-unknown", "../etc", "x" * 200, "größe"])
def test_deleting_an_unknown_volume_succeeds(csi: CsiServer, volume_id: str) -> None:
    csi.call("DeleteVolume", Requests(csi).of("DeleteVolume", volume_id=volume_id))


@pytest.mark.parametrize("call", ["NodeUnpublishVolume", "NodeUnstageVolume"])
def test_taking_down_a_volume_that_is_gone_succeeds(csi: CsiServer, call: str) -> None:
    csi.call(call, Requests(csi, name="pvc-unknown").of(call))


def test_a_logical_volume_of_somebody_else_is_no_volume(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume")
    csi.node.lvs["root"] = replace(csi.node.lvs[NAME], name="root", tags=frozenset({"os"}))
    code, message = csi.refused("DeleteVolume", requests.of("DeleteVolume", volume_id="root"))
    assert code is Code.FAILED_PRECONDITION
    assert "vg0 holds a logical volume root without a tag of this driver" in message
    assert "root" in csi.node.lvs
    code, _ = csi.refused("NodeStageVolume", requests.of("NodeStageVolume", volume_id="root"))
    assert code is Code.NOT_FOUND
    code, message = csi.refused("CreateVolume", requests.of("CreateVolume", name="root"))
    assert code is Code.FAILED_PRECONDITION
    assert "already holds a logical volume root" in message


# Repeats


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_call_gives_the_same_answer_and_changes_nothing(csi: CsiServer, kind: str) -> None:
    requests = Requests(csi, kind)
    for call in LIFE:
        first = csi.call(call, requests.of(call))
        after = copy.deepcopy(csi.node)
        for _ in range(3):
            assert csi.call(call, requests.of(call)) == first
        if call == "NodeUnstageVolume":
            # A device that was left for the next stage may go, as nothing tells any more that the node mounted it.
            after.devices = csi.node.devices
        assert csi.node == after
    assert (csi.node.lvs, csi.node.mounts, csi.node.records) == ({}, [], {})
    assert len(csi.node.formats) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_reported_size_is_exactly_what_was_asked_for(csi: CsiServer, kind: str) -> None:
    wanted = 301 * MIB + 4096
    answer = csi.call("CreateVolume", Requests(csi, kind).of("CreateVolume", capacity_range=size(wanted, limit=wanted)))
    assert answer.volume.capacity_bytes == wanted
    assert csi.node.lvs[NAME].size_bytes >= wanted


def test_the_answer_says_where_the_volume_is_and_carries_the_parameters_of_its_class(csi: CsiServer) -> None:
    given = {"sealed": "xts", "csi.storage.k8s.io/pvc/name": "data"}
    volume = csi.call("CreateVolume", Requests(csi, "sealed").of("CreateVolume", parameters=given)).volume
    assert [dict(term.segments) for term in volume.accessible_topology] == [{NODE_KEY: "node-1"}]
    assert dict(volume.volume_context) == {"sealed": "xts"}


@pytest.mark.parametrize("name", ["n" * 128, "größe", "snapshot-1", "a b/c", ".."])
def test_any_name_that_csi_allows_makes_one_volume_that_lives(csi: CsiServer, name: str) -> None:
    requests = Requests(csi)
    volume_id = csi.call("CreateVolume", requests.of("CreateVolume", name=name)).volume.volume_id
    assert csi.call("CreateVolume", requests.of("CreateVolume", name=name)).volume.volume_id == volume_id
    assert len(volume_id.encode()) <= 128
    assert list(csi.node.lvs) == [volume_id]
    csi.call("NodeStageVolume", requests.of("NodeStageVolume", volume_id=volume_id))
    csi.call("NodeUnstageVolume", requests.of("NodeUnstageVolume", volume_id=volume_id))
    csi.call("DeleteVolume", requests.of("DeleteVolume", volume_id=volume_id))
    assert not csi.node.lvs


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (size(SIZE), size(SIZE, limit=2 * SIZE)),
        (size(SIZE), size(SIZE // 2)),
        (size(SIZE), size(0, limit=SIZE)),
        (size(SIZE // 2, limit=SIZE), size(2 * MIB)),
        (None, None),
    ],
)
def test_a_repeat_with_a_compatible_size_finds_the_volume(csi: CsiServer, first: Any, again: Any) -> None:
    requests = Requests(csi)
    made = csi.call("CreateVolume", requests.of("CreateVolume", capacity_range=first))
    assert csi.call("CreateVolume", requests.of("CreateVolume", capacity_range=again)) == made
    assert len(csi.node.lvs) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity_range": size(2 * SIZE)},
        {"capacity_range": size(2 * MIB, limit=SIZE - 1)},
        {"parameters": {"direct": "true"}},
        {"parameters": {"wipe": "none"}},
    ],
)
def test_the_same_name_with_other_size_or_parameters_already_exists(csi: CsiServer, changes: dict[str, Any]) -> None:
    requests = live(csi, "NodeStageVolume")
    before = copy.deepcopy(csi.node)
    code, message = csi.refused("CreateVolume", requests.of("CreateVolume", **changes))
    assert code is Code.ALREADY_EXISTS
    assert NAME in message
    assert csi.node == before


@pytest.mark.parametrize(
    ("kind", "call", "changes"),
    [
        ("ext4", "NodeStageVolume", {"volume_capability": capability("xfs")}),
        ("ext4", "NodeStageVolume", {"volume_capability": capability(mode=Mode.SINGLE_NODE_READER_ONLY)}),
        ("ext4", "NodePublishVolume", {"readonly": True}),
        ("block", "NodePublishVolume", {"readonly": True}),
        ("direct", "NodePublishVolume", {"readonly": True}),
        ("direct", "NodePublishVolume", {"volume_capability": capability("direct", flags=("noatime",))}),
    ],
)
def test_staged_or_published_otherwise_already_exists(
    csi: CsiServer, kind: str, call: str, changes: dict[str, Any]
) -> None:
    requests = live(csi, "NodeUnpublishVolume", kind)
    before = copy.deepcopy(csi.node)
    code, _ = csi.refused(call, requests.of(call, **changes))
    assert code is Code.ALREADY_EXISTS
    assert csi.node == before


# Preconditions


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_that_is_not_staged_is_not_published(csi: CsiServer, kind: str) -> None:
    requests = live(csi, "NodeStageVolume", kind)
    code, message = csi.refused("NodePublishVolume", requests.of("NodePublishVolume"))
    assert code is Code.FAILED_PRECONDITION
    assert "NodeStageVolume" in message


def test_publishing_a_mounted_volume_needs_the_staging_path(csi: CsiServer) -> None:
    requests = live(csi, "NodePublishVolume")
    code, _ = csi.refused("NodePublishVolume", requests.of("NodePublishVolume", staging_target_path=None))
    assert code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_writer_has_one_target(csi: CsiServer, kind: str) -> None:
    requests = live(csi, "NodeUnpublishVolume", kind)
    before = copy.deepcopy(csi.node)
    other = f"{csi.kubelet}/pods/p2/volumes/kubernetes.io~csi/{NAME}/mount"
    code, message = csi.refused("NodePublishVolume", requests.of("NodePublishVolume", target_path=other))
    assert code is Code.FAILED_PRECONDITION
    assert requests.target in message
    assert csi.node == before


def test_several_writers_have_several_targets(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume")
    shared = capability(mode=Mode.SINGLE_NODE_MULTI_WRITER)
    csi.call("NodeStageVolume", requests.of("NodeStageVolume", volume_capability=shared))
    for pod in ("p1", "p2"):
        path = f"{csi.kubelet}/pods/{pod}/mount"
        request = requests.of("NodePublishVolume", volume_capability=shared, target_path=path)
        csi.call("NodePublishVolume", request)
        assert csi.node.path(path).top is not None


@pytest.mark.parametrize("call", ["DeleteVolume", "NodeUnstageVolume"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_published_volume_is_neither_deleted_nor_unstaged(csi: CsiServer, kind: str, call: str) -> None:
    requests = live(csi, "NodeUnpublishVolume", kind)
    before = copy.deepcopy(csi.node)
    code, message = csi.refused(call, requests.of(call))
    assert code is Code.FAILED_PRECONDITION
    assert requests.target in message
    assert csi.node == before


@pytest.mark.parametrize(
    ("call", "field", "place"),
    [("NodeUnpublishVolume", "target_path", "target"), ("NodeUnstageVolume", "staging_target_path", "staging")],
)
def test_a_call_with_the_path_of_another_volume_leaves_that_one_mounted(
    csi: CsiServer, call: str, field: str, place: str
) -> None:
    victim, other = live(csi, "NodeUnpublishVolume"), Requests(csi, "block", name="pvc-2")
    for earlier in LIFE[:2]:
        csi.call(earlier, other.of(earlier))
    before = copy.deepcopy(csi.node)
    code, message = csi.refused(call, other.of(call, **{field: getattr(victim, place)}))
    assert code is Code.FAILED_PRECONDITION
    assert "left alone" in message
    assert csi.node == before


def test_a_volume_whose_deletion_failed_half_way_is_never_used_again(csi: CsiServer) -> None:
    requests = live(csi, "NodePublishVolume")
    csi.call("NodeUnstageVolume", requests.of("NodeUnstageVolume"))
    csi.failures[steps.RemoveLV] = errors.CommandError(["lvm", "lvremove"], 5, "", "no")
    csi.refused("DeleteVolume", requests.of("DeleteVolume"))
    for call in ("CreateVolume", "NodeStageVolume", "NodePublishVolume"):
        code, message = csi.refused(call, requests.of(call))
        assert code is Code.FAILED_PRECONDITION
        assert "being deleted" in message
    csi.failures.clear()
    csi.call("DeleteVolume", requests.of("DeleteVolume"))
    assert not csi.node.lvs


# Room


def test_a_full_node_is_resource_exhausted_and_says_what_room_there_is(csi: CsiServer) -> None:
    code, message = csi.refused("CreateVolume", Requests(csi).of("CreateVolume", capacity_range=size(5000 * MIB)))
    assert code is Code.RESOURCE_EXHAUSTED
    assert "vg0 has room for" in message
    assert not csi.node.lvs


@pytest.mark.parametrize("parameters", [{"pool": "elsewhere"}, {"vgName": "elsewhere"}])
def test_a_class_for_other_nodes_sends_the_scheduler_on(csi: CsiServer, parameters: dict[str, str]) -> None:
    code, message = csi.refused("CreateVolume", Requests(csi).of("CreateVolume", parameters=parameters))
    assert code is Code.RESOURCE_EXHAUSTED
    assert "elsewhere" in message
    capacity = csi.call("GetCapacity", Requests(csi).of("GetCapacity", parameters=parameters))
    assert capacity.available_capacity == 0


def test_a_request_for_another_node_sends_the_scheduler_on(csi: CsiServer) -> None:
    elsewhere = csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology(segments={NODE_KEY: "node-2"})])
    code, message = csi.refused("CreateVolume", Requests(csi).of("CreateVolume", accessibility_requirements=elsewhere))
    assert code is Code.RESOURCE_EXHAUSTED
    assert "node-2" in message
    assert not csi.node.lvs


def _of(word: str) -> Capability:
    if word == "block":
        return capability("block")
    silent = capability()
    silent.mount.fs_type = word
    return silent


@pytest.mark.parametrize(("made", "asked"), [("block", ""), ("", "block"), ("ext4", "xfs"), ("xfs", "")])
def test_the_same_name_with_another_capability_is_another_volume(csi: CsiServer, made: str, asked: str) -> None:
    wanted = [_of(word) for word in (made, asked)]
    requests = Requests(csi)
    csi.call("CreateVolume", requests.of("CreateVolume", volume_capabilities=[wanted[0]]))
    csi.call("CreateVolume", requests.of("CreateVolume", volume_capabilities=[wanted[0]]))
    code, message = csi.refused("CreateVolume", requests.of("CreateVolume", volume_capabilities=[wanted[1]]))
    assert code is Code.ALREADY_EXISTS
    assert f"exists as {made or 'ext4'}, and {asked or 'ext4'} is asked for" in message


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("asked", ["block", "xfs"])
def test_what_a_volume_was_not_made_as_is_not_confirmed(csi: CsiServer, asked: str, prepared: bool) -> None:
    requests = live(csi, "NodeStageVolume" if prepared else "CreateVolume")
    if prepared:
        csi.call("NodeStageVolume", requests.of("NodeStageVolume"))
    else:
        csi.call("CreateVolume", requests.of("CreateVolume"))
    request = requests.of("ValidateVolumeCapabilities", volume_capabilities=[_of(asked)])
    answer = csi.call("ValidateVolumeCapabilities", request)
    assert not answer.HasField("confirmed")
    assert "ext4" in answer.message


def test_a_context_of_another_volume_is_not_confirmed(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume")
    request = requests.of("ValidateVolumeCapabilities", volume_context={"wipe": "none"})
    assert not csi.call("ValidateVolumeCapabilities", request).HasField("confirmed")


@pytest.mark.parametrize(
    "parameters", [{"lvmtyp": "linear"}, {"lvmType": "raid9"}, {"iops": "9"}, {"pool": "main", "vgName": "a"}]
)
def test_a_class_with_a_mistake_has_all_the_room_so_that_its_refusal_is_seen(
    csi: CsiServer, parameters: dict[str, str]
) -> None:
    """Without room no node is chosen, and the one text that names the mistake stays in a log."""
    code, message = csi.refused("CreateVolume", Requests(csi).of("CreateVolume", parameters=parameters))
    assert code is Code.INVALID_ARGUMENT
    assert any(key in message for key in parameters)
    of_this_class, of_a_good_one = (
        csi.call("GetCapacity", Requests(csi).of("GetCapacity", parameters=given)) for given in (parameters, {})
    )
    assert of_this_class.available_capacity == of_a_good_one.available_capacity == 4000 * MIB
    assert not of_this_class.HasField("maximum_volume_size")


def test_the_mistake_of_a_class_is_logged_once(csi: CsiServer) -> None:
    for _ in range(3):
        csi.call("GetCapacity", Requests(csi).of("GetCapacity", parameters={"lvmtyp": "linear"}))
    csi.call("GetCapacity", Requests(csi).of("GetCapacity", parameters={"iops": "9"}))
    said = [event["error"] for event in csi.events if event["event"] == "a StorageClass has a mistake"]
    assert len(said) == 2
    assert "lvmType" in said[0]


def test_room_that_lvm_has_refused_is_not_named(csi: CsiServer) -> None:
    requests = Requests(csi)
    before = csi.call("GetCapacity", requests.of("GetCapacity"))
    csi.desk.refusals.note("vg0", "LVM refused a volume there")
    refused = csi.call("GetCapacity", requests.of("GetCapacity"))
    assert before.available_capacity > 0
    assert (refused.available_capacity, refused.maximum_volume_size.value) == (0, 0)
    # Whoever asks for a volume may have mended the reason: LVM is asked again.
    csi.call("CreateVolume", requests.of("CreateVolume"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_of_the_maximum_size_fits_and_a_larger_one_does_not(csi: CsiServer, kind: str) -> None:
    requests = Requests(csi, kind)
    largest = csi.call("GetCapacity", requests.of("GetCapacity")).maximum_volume_size.value
    request = requests.of("CreateVolume", capacity_range=size(largest + 1))
    assert csi.refused("CreateVolume", request)[0] is Code.RESOURCE_EXHAUSTED
    csi.call("CreateVolume", requests.of("CreateVolume", capacity_range=size(largest)))
    after = csi.call("GetCapacity", requests.of("GetCapacity"))
    assert (after.available_capacity, after.maximum_volume_size.value) == (0, 0)


def test_capacity_for_another_node_is_none(csi: CsiServer) -> None:
    here, elsewhere = (
        csi.call("GetCapacity", csi_pb2.GetCapacityRequest(accessible_topology={"segments": {NODE_KEY: node}}))
        for node in ("node-1", "node-2")
    )
    assert here.available_capacity == 4000 * MIB
    assert elsewhere.available_capacity == 0


# One operation a volume


@pytest.mark.parametrize("running", LIFE)
def test_a_volume_in_flight_aborts_every_other_call_and_names_the_running_one(csi: CsiServer, running: str) -> None:
    requests = live(csi, running)
    with csi.running(running, requests.of(running), HELD[running]) as future:
        before = copy.deepcopy(csi.node)
        for call in LIFE:
            code, message = csi.refused(call, requests.of(call))
            assert code is Code.ABORTED
            assert message.startswith(f"{running} of volume {NAME} is still running")
        assert csi.node == before
    assert future.code() is Code.OK
    csi.call(running, requests.of(running))


@pytest.mark.parametrize("running", LIFE)
def test_a_failed_call_leaves_no_lock_behind(csi: CsiServer, running: str) -> None:
    requests = live(csi, running)
    csi.failures[HELD[running]] = RuntimeError("broken")
    assert csi.refused(running, requests.of(running))[0] is Code.INTERNAL
    csi.failures.clear()
    csi.call(running, requests.of(running))


def test_a_long_wipe_or_format_holds_no_other_volume_up(csi: CsiServer) -> None:
    first, second = live(csi, "NodePublishVolume"), Requests(csi, name="pvc-2")
    csi.call("NodeUnstageVolume", first.of("NodeUnstageVolume"))
    with csi.running("DeleteVolume", first.of("DeleteVolume"), steps.ZeroRange):
        csi.call("CreateVolume", second.of("CreateVolume"))
        csi.call("GetCapacity", second.of("GetCapacity"))
        csi.call("ValidateVolumeCapabilities", second.of("ValidateVolumeCapabilities"))
    with csi.running("NodeStageVolume", second.of("NodeStageVolume"), steps.MakeFilesystem):
        csi.call("CreateVolume", first.of("CreateVolume"))
    assert set(csi.node.lvs) == {"pvc-1", "pvc-2"}


def test_probe_answers_while_a_hundred_other_calls_wait_for_lvm(csi: CsiServer) -> None:
    names = [f"pvc-{number}" for number in range(100)]
    with csi.lvm.turns.group("vg0", "a test"):
        waiting = [
            csi.method("CreateVolume").future(
                Requests(csi, name=name).of("CreateVolume", capacity_range=size(8 * MIB)), timeout=PATIENCE
            )
            for name in names
        ]
        _wait(lambda: len(csi.events) == len(names))
        assert not csi.call("Probe", csi_pb2.ProbeRequest()).ready.value
        assert not any(future.done() for future in waiting)
    assert [future.code() for future in waiting] == [Code.OK] * len(names)
    assert csi.node.lvs.keys() == set(names)


# The caller goes away


def test_a_caller_whose_deadline_passes_does_not_end_the_work(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume")
    request = requests.of("NodeStageVolume")
    with csi.hold(steps.MakeFilesystem) as gate:
        code, _ = csi.refused("NodeStageVolume", request, timeout=1.0)
        assert code is Code.DEADLINE_EXCEEDED
        assert gate.reached.wait(PATIENCE)
        assert csi.refused("NodeStageVolume", request)[0] is Code.ABORTED
    _until_free(csi, "NodeStageVolume", request)
    assert csi.node.formats == [NAME], "the first call's format was not the only one"
    assert csi.node.path(requests.staging).top is not None


def test_a_caller_that_cancels_does_not_end_the_work(csi: CsiServer) -> None:
    request = Requests(csi).of("CreateVolume")
    with csi.hold(steps.CreateLV) as gate:
        future = csi.method("CreateVolume").future(request, timeout=PATIENCE)
        assert gate.reached.wait(PATIENCE)
        future.cancel()
        assert csi.refused("CreateVolume", request)[0] is Code.ABORTED
    _until_free(csi, "CreateVolume", request)
    assert list(csi.node.lvs) == [NAME]


def _until_free(csi: CsiServer, call: str, request: object) -> None:
    """Repeat as kubelet does, until the first call has ended."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        try:
            csi.call(call, request)
        except grpc.RpcError as error:
            assert csi.checked_status(error)[0] is Code.ABORTED  # noqa: PT017
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"{call} is still aborted")


def test_a_graceful_stop_finishes_the_running_call_and_takes_no_new_one(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume")
    with csi.running("NodeStageVolume", requests.of("NodeStageVolume"), steps.MakeFilesystem) as future:
        stopped = csi.server.stop(PATIENCE)
        # gRPC turns a new call away by either code, as it meets the listener or the connection while they close.
        assert csi.refused("Probe", csi_pb2.ProbeRequest())[0] in (Code.UNAVAILABLE, Code.CANCELLED)
        assert not stopped.is_set()
        assert not future.done()
    assert future.code() is Code.OK
    assert stopped.wait(PATIENCE)
    assert csi.node.path(requests.staging).top is not None


# What a failure says


_NOWHERE = (
    "no volume group can take 400 MiB (linear): vg0 has room for 0 bytes, as full. Free or add space, ask for less, or let "
    "the scheduler use another node."
)
BAD = errors.DiskFailed("/dev/x", "takes no write at byte 0", OSError(5, "bad sector"))
ERRORS = [
    (errors.InvalidInput("a field", "is wrong"), Code.INVALID_ARGUMENT, "a field: is wrong"),
    (errors.NotFound("it is gone"), Code.NOT_FOUND, "it is gone"),
    (errors.AlreadyExists("it is other"), Code.ALREADY_EXISTS, "it is other"),
    (errors.Busy("wait"), Code.ABORTED, "wait"),
    (errors.Refused("not so"), Code.FAILED_PRECONDITION, "not so"),
    (errors.ForeignContent("not ours"), Code.FAILED_PRECONDITION, "not ours"),
    (errors.InUse("held"), Code.FAILED_PRECONDITION, "held"),
    (errors.NoSpace("full"), Code.RESOURCE_EXHAUSTED, _NOWHERE),
    (errors.OutOfRange("too large"), Code.OUT_OF_RANGE, "too large"),
    (errors.Unsupported("not offered"), Code.UNIMPLEMENTED, "not offered"),
    (errors.Unavailable("later"), Code.UNAVAILABLE, "later"),
    (
        errors.DiskFailed("/dev/x", "takes no write at byte 0", OSError(5, "bad sector")),
        Code.UNAVAILABLE,
        "/dev/x takes no write at byte 0: bad sector; look at the kernel's log and at the disk, then repeat",
    ),
]
WHAT_TO_DO = "(see this node's driver log; the call is safe to repeat)"


@pytest.mark.parametrize(("error", "code", "text"), ERRORS, ids=lambda value: type(value).__name__)
def test_each_class_of_error_has_its_code_and_keeps_its_text(
    csi: CsiServer, error: Exception, code: Code, text: str
) -> None:
    csi.failures[steps.CreateLV] = error
    assert csi.refused("CreateVolume", Requests(csi).of("CreateVolume")) == (code, text)


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (
            errors.CommandError(["lvm", "lvcreate"], 5, "", "  PV /dev/sdb went missing"),
            Code.INTERNAL,
            "PV /dev/sdb went missing",
        ),
        (errors.CommandTimeout(["mkfs.ext4"], 600.0), Code.DEADLINE_EXCEEDED, "no end after 600 s"),
        (errors.CommandKilled(["lvm", "lvcreate"], 9), Code.UNAVAILABLE, "lvm lvcreate: ended by signal 9"),
        (errors.ToolFailed("lvm: not found on PATH"), Code.INTERNAL, "lvm: not found on PATH"),
        (OSError(13, "Permission denied", "/dev/vg0/pvc-1"), Code.INTERNAL, "Permission denied on /dev/vg0/pvc-1"),
    ],
)
def test_what_a_tool_said_reaches_the_caller_with_what_to_do(
    csi: CsiServer, error: Exception, expected: Code, said: str
) -> None:
    csi.failures[steps.CreateLV] = error
    code, message = csi.refused("CreateVolume", Requests(csi).of("CreateVolume"))
    assert code is expected
    assert said in message
    assert message.endswith(WHAT_TO_DO)


@pytest.mark.parametrize("error", [RuntimeError("hunter2"), KeyError("hunter2"), AssertionError("hunter2")])
def test_the_text_of_an_unexpected_error_stays_on_the_node(csi: CsiServer, error: Exception) -> None:
    csi.failures[steps.CreateLV] = error
    code, message = csi.refused("CreateVolume", Requests(csi).of("CreateVolume"))
    assert code is Code.INTERNAL
    assert "hunter2" not in message
    assert type(error).__name__ not in message
    assert "driver log" in message
    failed = csi.events[-1]
    assert (failed["level"], failed["code"]) == ("error", "INTERNAL")
    assert "hunter2" in failed["traceback"], "the operator needs the text that the caller doesn't get"


@pytest.mark.parametrize("call", NOT_OFFERED)
def test_a_call_that_is_not_offered_says_so_by_name(csi: CsiServer, call: str) -> None:
    code, message = csi.refused(call, NOT_OFFERED[call]())
    assert code is Code.UNIMPLEMENTED
    assert call in message


@pytest.mark.parametrize("method", ["GroupController/GroupControllerGetCapabilities", "Node/NodeInvented"])
def test_a_service_or_method_that_does_not_exist_is_unimplemented(csi: CsiServer, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        csi.channel.unary_unary(f"/csi.v1.{method}")(b"", timeout=PATIENCE)
    assert csi.checked_status(caught.value)[0] is Code.UNIMPLEMENTED


def test_every_call_of_the_services_is_either_tested_here_as_offered_or_as_not_offered() -> None:
    services = csi_pb2.DESCRIPTOR.services_by_name
    every = {method.name for name in ("Identity", "Controller", "Node") for method in services[name].methods}
    offered = {*LIFE, "ValidateVolumeCapabilities", "GetCapacity", "NodeGetVolumeStats", "NodeGetInfo", "Probe"}
    offered |= {"GetPluginInfo", "GetPluginCapabilities", "ControllerGetCapabilities", "NodeGetCapabilities"}
    assert every == offered | NOT_OFFERED.keys()


# Who and what the plugin is


def test_the_plugin_gives_its_name_and_version(csi: CsiServer) -> None:
    info = csi.call("GetPluginInfo", csi_pb2.GetPluginInfoRequest())
    assert (info.name, info.vendor_version) == ("sealed-local.csi", __version__)


def test_the_plugin_offers_a_controller_whose_volumes_stay_on_their_node(csi: CsiServer) -> None:
    answer = csi.call("GetPluginCapabilities", csi_pb2.GetPluginCapabilitiesRequest())
    kind = csi_pb2.PluginCapability.Service
    assert {item.service.type for item in answer.capabilities} == {
        kind.CONTROLLER_SERVICE,
        kind.VOLUME_ACCESSIBILITY_CONSTRAINTS,
    }


def test_capabilities_name_what_is_offered_and_nothing_else(csi: CsiServer) -> None:
    controller = csi.call("ControllerGetCapabilities", csi_pb2.ControllerGetCapabilitiesRequest())
    kind = csi_pb2.ControllerServiceCapability.RPC
    assert {item.rpc.type for item in controller.capabilities} == {
        kind.CREATE_DELETE_VOLUME,
        kind.GET_CAPACITY,
        kind.SINGLE_NODE_MULTI_WRITER,
    }
    node = csi.call("NodeGetCapabilities", csi_pb2.NodeGetCapabilitiesRequest())
    of_node = csi_pb2.NodeServiceCapability.RPC
    assert {item.rpc.type for item in node.capabilities} == {
        of_node.STAGE_UNSTAGE_VOLUME,
        of_node.GET_VOLUME_STATS,
        of_node.SINGLE_NODE_MULTI_WRITER,
    }


def test_the_node_tells_its_name_place_and_limit(csi: CsiServer) -> None:
    info = csi.call("NodeGetInfo", csi_pb2.NodeGetInfoRequest())
    assert (info.node_id, info.max_volumes_per_node) == ("node-1", 7)
    assert dict(info.accessible_topology.segments) == {NODE_KEY: "node-1"}


def test_probe_is_not_ready_before_start_up_and_ready_after_it(csi: CsiServer) -> None:
    assert csi.call("Probe", csi_pb2.ProbeRequest()).ready.value is False
    csi.attempt()
    assert csi.call("Probe", csi_pb2.ProbeRequest()).ready.value is True


def test_probe_says_why_the_driver_cannot_work(csi: CsiServer) -> None:
    csi.lvm.broken = errors.ToolFailed("lvm: not found on PATH; install the package that holds it")
    csi.attempt()
    code, message = csi.refused("Probe", csi_pb2.ProbeRequest())
    assert code is Code.FAILED_PRECONDITION
    assert "install the package" in message
    assert not csi.standing.ready


def test_one_bad_disk_stops_its_pool_and_not_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = "pools: [{name: main, vgs: [vg0]}, {name: bad, vgs: [vg1], devices: [/dev/no-such-disk]}]"
    with serving(tmp_path, monkeypatch, config) as csi:
        csi.attempt()
        assert csi.call("Probe", csi_pb2.ProbeRequest()).ready.value is True
        warning = next(event for event in csi.events if event["event"] == "pool is not complete")
        assert "/dev/no-such-disk" in warning["error"]
        csi.call("CreateVolume", Requests(csi).of("CreateVolume", parameters={"pool": "main"}))


# Looking at a volume


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_volume_can_serve_is_confirmed_with_what_was_asked(csi: CsiServer, kind: str) -> None:
    requests = live(csi, "NodePublishVolume", kind)
    request = requests.of("ValidateVolumeCapabilities", parameters=KINDS[kind][0], volume_context={"a": "b"})
    answer = csi.call("ValidateVolumeCapabilities", request)
    assert list(answer.confirmed.volume_capabilities) == list(request.volume_capabilities)
    assert dict(answer.confirmed.parameters) == KINDS[kind][0]
    assert dict(answer.confirmed.volume_context) == {"a": "b"}


@pytest.mark.parametrize(
    "changes",
    [
        {"volume_capabilities": [capability("block")]},
        {"volume_capabilities": [capability(mode=Mode.MULTI_NODE_READER_ONLY)]},
        {"volume_capabilities": [capability(), Capability()]},
        {"parameters": {"direct": "true"}},
    ],
)
def test_what_a_volume_cannot_serve_is_not_confirmed_and_the_answer_says_why(
    csi: CsiServer, changes: dict[str, Any]
) -> None:
    requests = live(csi, "NodePublishVolume")
    answer = csi.call("ValidateVolumeCapabilities", requests.of("ValidateVolumeCapabilities", **changes))
    assert not answer.HasField("confirmed")
    assert answer.message


def test_statistics_of_a_mounted_volume_are_bytes_and_inodes(csi: CsiServer) -> None:
    requests = live(csi, "NodeUnpublishVolume")
    Path(requests.target).mkdir(parents=True)
    bytes_used, inodes = csi.call("NodeGetVolumeStats", requests.of("NodeGetVolumeStats")).usage
    assert (bytes_used.unit, inodes.unit) == (csi_pb2.VolumeUsage.BYTES, csi_pb2.VolumeUsage.INODES)
    for usage in (bytes_used, inodes):
        assert usage.total >= usage.used >= 0
    assert bytes_used.total == os.statvfs(requests.target).f_blocks * os.statvfs(requests.target).f_frsize


def test_statistics_of_a_block_volume_are_its_size(csi: CsiServer) -> None:
    requests = live(csi, "NodeUnpublishVolume", "block")
    (usage,) = csi.call("NodeGetVolumeStats", requests.of("NodeGetVolumeStats")).usage
    assert (usage.unit, usage.total) == (csi_pb2.VolumeUsage.BYTES, 4096)


def test_statistics_of_a_direct_volume_are_the_guests_business(csi: CsiServer) -> None:
    requests = live(csi, "NodeUnpublishVolume", "direct")
    code, message = csi.refused("NodeGetVolumeStats", requests.of("NodeGetVolumeStats"))
    assert code is Code.FAILED_PRECONDITION
    assert "guest" in message


@pytest.mark.parametrize("path", ["some/path", "/etc"])
def test_statistics_at_a_path_where_the_volume_is_not_are_not_found(csi: CsiServer, path: str) -> None:
    requests = live(csi, "NodeUnpublishVolume")
    code, message = csi.refused("NodeGetVolumeStats", requests.of("NodeGetVolumeStats", volume_path=path))
    assert code is Code.NOT_FOUND
    assert path in message


# The log


SECRET = "correct-horse-battery-staple"
_WITH_SECRETS = ("CreateVolume", "NodeStageVolume", "NodePublishVolume", "DeleteVolume", "ValidateVolumeCapabilities")


@pytest.mark.parametrize("failure", [None, errors.Refused("no"), OSError(5, "no", "/dev/x"), RuntimeError("no")])
def test_secrets_of_requests_are_never_logged(csi: CsiServer, failure: Exception | None) -> None:
    requests = live(csi, "NodeStageVolume")
    csi.failures |= {kind: failure for kind in HELD.values() if failure is not None}
    for call in _WITH_SECRETS:
        with_secrets = requests.of(call, secrets={"passphrase": SECRET, SECRET: "value"})
        if failure is None and call != "DeleteVolume":
            csi.call(call, with_secrets)
        else:
            csi.method(call).future(with_secrets, timeout=PATIENCE).exception(PATIENCE)
    shown = [event["request"] for event in csi.events if event["event"] == "request"]
    assert sum(request.get("secrets") == "***" for request in shown) == len(_WITH_SECRETS)
    assert SECRET not in csi.logged


def test_mount_flags_which_may_hold_credentials_are_not_logged_with_the_request(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume")
    wanted = capability(flags=(f"password={SECRET}",))
    csi.call("NodeStageVolume", requests.of("NodeStageVolume", volume_capability=wanted))
    assert SECRET not in csi.logged


def test_secrets_are_never_stored_on_the_node(csi: CsiServer) -> None:
    requests = Requests(csi, "sealed")
    for call in LIFE[:3]:
        csi.call(call, requests.of(call, secrets={"passphrase": SECRET}))
    assert csi.node.records
    assert SECRET not in repr(csi.node)


def test_every_line_of_a_call_carries_its_request_id_and_its_volume(csi: CsiServer) -> None:
    requests = Requests(csi)
    for call in LIFE:
        csi.call(call, requests.of(call))
    by_request = [list(lines) for _, lines in itertools.groupby(csi.events, key=lambda event: event.get("request_id"))]
    assert [lines[0]["rpc"] for lines in by_request] == list(LIFE)
    assert len({lines[0]["request_id"] for lines in by_request}) == len(LIFE)
    for lines in by_request:
        kinds = [line["event"] for line in lines]
        assert (kinds[0], kinds[-1]) == ("request", "answer")
        assert "step" in kinds
        assert {line["volume_id"] for line in lines} == {NAME}
        assert lines[-1]["code"] == "OK"
        assert lines[-1]["ms"] >= 0


def test_a_failed_call_is_logged_once_with_code_and_text_and_its_ids(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume")
    seen = len(csi.events)
    _, message = csi.refused("NodePublishVolume", requests.of("NodePublishVolume"))
    asked, answer = csi.events[seen:]
    assert (asked["event"], answer["event"], answer["level"]) == ("request", "answer", "warning")
    assert (answer["code"], answer["error"]) == ("FAILED_PRECONDITION", message)
    assert answer["volume_id"] == NAME
    assert answer["request_id"] == asked["request_id"]


def test_lines_of_two_calls_at_once_are_told_apart(csi: CsiServer) -> None:
    first, second = live(csi, "NodeStageVolume"), Requests(csi, name="pvc-2")
    with csi.running("NodeStageVolume", first.of("NodeStageVolume"), steps.MakeFilesystem):
        csi.call("CreateVolume", second.of("CreateVolume"))
    steps_of = {
        name: {event["rpc"] for event in csi.events if event["event"] == "step" and event["volume_id"] == name}
        for name in ("pvc-1", "pvc-2")
    }
    assert steps_of == {"pvc-1": {"CreateVolume", "NodeStageVolume"}, "pvc-2": {"CreateVolume"}}


def test_what_is_asked_every_few_seconds_is_logged_at_level_debug_only(csi: CsiServer) -> None:
    csi.call("Probe", csi_pb2.ProbeRequest())
    csi.call("GetCapacity", Requests(csi).of("GetCapacity"))
    csi.call("CreateVolume", Requests(csi).of("CreateVolume"))
    levels = {(event["rpc"], event["level"]) for event in csi.events if event["event"] in ("request", "answer")}
    assert levels == {("Probe", "debug"), ("GetCapacity", "debug"), ("CreateVolume", "info")}


# Metrics


def test_each_call_is_measured_with_its_method_and_its_code(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume")
    csi.refused("NodeStageVolume", requests.of("NodeStageVolume", volume_id=None))
    csi.refused("NodePublishVolume", requests.of("NodePublishVolume"))
    csi.refused("ListVolumes", csi_pb2.ListVolumesRequest())
    csi.failures[steps.Activate] = RuntimeError("broken")
    csi.refused("NodeStageVolume", requests.of("NodeStageVolume"))
    seen = [(call.method, call.code.replace("_", "").lower()) for call in csi.metrics.calls]
    assert seen == [
        ("/csi.v1.Controller/CreateVolume", "ok"),
        ("/csi.v1.Node/NodeStageVolume", "invalidargument"),
        ("/csi.v1.Node/NodePublishVolume", "failedprecondition"),
        ("/csi.v1.Controller/ListVolumes", "unimplemented"),
        ("/csi.v1.Node/NodeStageVolume", "internal"),
    ]


def test_the_measured_time_is_the_time_that_the_call_took(csi: CsiServer) -> None:
    with csi.running("CreateVolume", Requests(csi).of("CreateVolume"), steps.CreateLV):
        time.sleep(0.2)
    assert 0.2 <= csi.metrics.calls[-1].seconds < PATIENCE


# The node's hands, and the program itself


def test_only_its_owner_can_use_the_socket(tmp_path: Path, monkeypatch: Any) -> None:
    with serving(tmp_path, monkeypatch) as csi:
        assert stat.S_ISSOCK(csi.socket.stat().st_mode)
        assert stat.S_IMODE(csi.socket.stat().st_mode) & 0o077 == 0


def test_a_socket_that_a_killed_process_left_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, tmp_path / "csi.sock"], check=True, timeout=PATIENCE)
    assert (tmp_path / "csi.sock").is_socket()
    with serving(tmp_path, monkeypatch) as csi:
        assert csi.call("GetPluginInfo", csi_pb2.GetPluginInfoRequest()).name == "sealed-local.csi"


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:9000", "127.0.0.1:0", "unix:///no/such/directory/csi.sock"])
def test_an_endpoint_that_cannot_be_bound_is_named(csi: CsiServer, endpoint: str) -> None:
    server = main.build_server(csi.desk, csi.standing, csi.metrics)
    with pytest.raises(errors.InvalidInput, match=r"--endpoint"):
        main._bind(server, endpoint)


_WITH_A_DISK = """
from types import SimpleNamespace
from csi.node import udev_rules
from csi.node.lvm import command
from tests.fakes.one_group import DISK, OneGroup

command.BlockDevices = lambda: SimpleNamespace(now=lambda: [DISK])
command.DiskViews = lambda reader: OneGroup()
# This machine's own udev is no part of the test.
udev_rules.put = lambda content, folder: True

import csi.__main__ as program

raise SystemExit(program.main())
"""
"""The real program on a machine that has a disk of the group."""

_FAKE_LVM = """#!/bin/sh
case "$2" in
  lvmconfig) echo 'global_filter=[]' ;;
  version) echo '  LVM version:     2.03.16(2) (2022-05-18)' ;;
  fullreport)
    if [ -e "$0.hold" ]; then
      : >"$0.reached"
      while [ -e "$0.hold" ]; do sleep 0.05; done
    fi
    echo '{"report": []}' >"/proc/self/fd/$LVM_REPORT_FD" ;;
  *) echo "no such verb: $2" >&2; exit 3 ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`sealed-local node` as a process, with a script in the place of lvm."""
    (tmp_path / "lvm").write_text(_FAKE_LVM)
    (tmp_path / "lvm").chmod(0o700)
    (tmp_path / "node.yaml").write_text("pools: [{name: main, vgs: [vg0]}]\n")
    options = {
        "--endpoint": f"unix://{tmp_path}/csi.sock",
        "--node-id": "node-1",
        "--config": tmp_path / "node.yaml",
        "--kubelet-dir": tmp_path,
        "--kata-registry": tmp_path / "registry",
        "--state-dir": tmp_path / "state",
        "--metrics-address": "",
        "--lvm-prefix": tmp_path / "lvm",
        "--log-level": "debug",
    }
    arguments = [str(word) for pair in options.items() for word in pair]
    argv = [sys.executable, "-c", _WITH_A_DISK, "node", *arguments]
    # Into a file: a full pipe would stop the driver.
    with (
        (tmp_path / "log").open("w") as log_file,
        subprocess.Popen(argv, cwd=ROOT, stderr=log_file, text=True) as child,
    ):
        try:
            yield child
        finally:
            (tmp_path / "lvm.hold").unlink(missing_ok=True)
            child.kill()


def test_a_stop_signal_lets_the_running_call_end_and_ends_the_program_well(
    program: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with grpc.insecure_channel(f"unix://{tmp_path}/csi.sock") as channel:
        probe = channel.unary_unary("/csi.v1.Identity/Probe", response_deserializer=csi_pb2.ProbeResponse.FromString)
        _wait(lambda: probe(b"", timeout=PATIENCE, wait_for_ready=True).ready.value)
        (tmp_path / "lvm.hold").touch()
        running = channel.unary_unary(
            "/csi.v1.Controller/GetCapacity", response_deserializer=csi_pb2.GetCapacityResponse.FromString
        ).future(b"", timeout=PATIENCE)
        _wait((tmp_path / "lvm.reached").exists)
        program.send_signal(signal.SIGTERM)
        _wait(lambda: _code(probe) is Code.UNAVAILABLE)
        assert not running.done()
        assert program.poll() is None
        (tmp_path / "lvm.hold").unlink()
        assert running.result(PATIENCE).available_capacity == 0
    assert program.wait(PATIENCE) == 0
    logged = (tmp_path / "log").read_text()
    events = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    milestones = ("serving", "ready", "stopping", "stopped")
    told = [event["event"] for event in events if event["event"] in milestones]
    assert told == ["serving", "ready", "stopping", "stopped"]
    assert ("GetCapacity", "answer") in [(event.get("rpc"), event["event"]) for event in events]
    assert events[-1]["event"] == "stopped", "it said too early that it had stopped"


def test_a_stop_lets_a_step_of_the_start_up_end_too(program: "subprocess.Popen[str]", tmp_path: Path) -> None:
    _wait(lambda: '"event":"pool is not complete"' in (tmp_path / "log").read_text().replace('": "', '":"'))
    (tmp_path / "lvm.hold").touch()
    _wait((tmp_path / "lvm.reached").exists)
    program.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(2)
    (tmp_path / "lvm.hold").unlink()
    assert program.wait(PATIENCE) == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines() if line[0] == "{"]
    assert "command" in events[events.index("stopping") :]
    assert events[-1] == "stopped"


def test_a_stop_signal_that_the_kernel_gives_to_another_thread_is_noticed(
    program: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with grpc.insecure_channel(f"unix://{tmp_path}/csi.sock") as channel:
        probe = channel.unary_unary("/csi.v1.Identity/Probe", response_deserializer=csi_pb2.ProbeResponse.FromString)
        _wait(lambda: probe(b"", timeout=PATIENCE, wait_for_ready=True).ready.value)
    threads = [int(path.name) for path in Path(f"/proc/{program.pid}/task").iterdir()]
    other = max(thread for thread in threads if thread != program.pid)
    assert ctypes.CDLL(None, use_errno=True).tgkill(program.pid, other, signal.SIGTERM) == 0
    assert program.wait(PATIENCE) == 0


def _code(probe: Any) -> Code | None:
    try:
        # A call that comes while the socket closes may stay without an answer; the next one is refused.
        probe(b"", timeout=2)
    except grpc.RpcError as error:
        return CsiServer.checked_status(error)[0]
    return None


def _wait(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.02)
