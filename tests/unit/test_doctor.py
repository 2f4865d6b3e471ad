"""From a claim's name to the reason why it is stuck, as a person needs it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from csi.core.command import Result
from csi.core.errors import CommandError, InvalidInput
from csi.core.kubernetes import Claim
from csi.doctor import findings, main, objects
from csi.doctor.objects import Seen, quantity_bytes

DRIVER = "sealed-local.csi"

CLAIM = {
    "metadata": {"name": "data", "namespace": "team"},
    "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "10Gi"}}},
    "status": {"phase": "Pending"},
}
BOUND = {**CLAIM, "status": {"phase": "Bound"}}
CLASS = {
    "metadata": {"name": "fast"},
    "provisioner": DRIVER,
    "parameters": {"pool": "nvme"},
    "volumeBindingMode": "WaitForFirstConsumer",
}
POD = {
    "metadata": {"name": "app", "namespace": "team"},
    "spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]},
    "status": {"phase": "Pending", "conditions": []},
}
NODE = {"metadata": {"name": "n1"}, "spec": {"drivers": [{"name": DRIVER}]}}
PLUGIN = {
    "metadata": {"name": "sealed-local-x", "namespace": "sealed-local"},
    "spec": {"nodeName": "n1"},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}


def capacity(node: str, room: str) -> dict[str, Any]:
    labels = {"matchLabels": {"topology.sealed-local.csi/node": node}}
    return {"metadata": {"name": node}, "storageClassName": "fast", "nodeTopology": labels, "maximumVolumeSize": room}


def warning(kind: str, name: str, reason: str, message: str, when: str = "2026-11-26T12:00:00Z") -> dict[str, Any]:
    about = {"kind": kind, "name": name}
    return {"involvedObject": about, "type": "Warning", "reason": reason, "message": message, "lastTimestamp": when}


USUAL: dict[str, list[Any]] = {
    "persistentvolumeclaims": [CLAIM],
    "pods": [POD],
    "persistentvolumes": [],
    "storageclasses": [CLASS],
    "csinodes": [NODE],
    "csistoragecapacities": [capacity("n1", "20Gi")],
    "events": [],
    "plugin": [PLUGIN],
}


class Kubectl:
    """Prints lists as kubectl does; `shown` are the objects by resource."""

    def __init__(self, shown: Mapping[str, Sequence[Any]]) -> None:
        self.shown = {**USUAL, **shown}
        self.asked: list[tuple[str, ...]] = []

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        self.asked.append(tuple(argv))
        assert argv[-2:] == ["--output", "json"]
        resource = argv[argv.index("get") + 1]
        kept = "plugin" if "--selector" in argv else resource
        text = json.dumps({"kind": "List", "items": self.shown[kept]}).encode()
        return Result(argv=tuple(argv), returncode=0, stdout=text, stderr=b"")


def found(name: str = "data", **shown: Sequence[Any]) -> list[str]:
    seen = main.look(Kubectl(shown), "team", "")
    return [f"{one.found} {one.todo}" for one in findings.of_claim(seen, "team", name, DRIVER)]


def test_nobody_complains_about_what_is_well() -> None:
    assert found() == []
    assert found(persistentvolumeclaims=[BOUND]) == []


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ({"storageclasses": []}, "class fast isn't there"),
        ({"storageclasses": [{**CLASS, "provisioner": "other.csi"}]}, "is of other.csi, not of sealed-local.csi"),
        ({"csinodes": [{"metadata": {"name": "n1"}, "spec": {"drivers": None}}]}, "No node's kubelet knows the driver"),
        ({"pods": []}, "waits for a pod, and no pod"),
        ({"csistoragecapacities": []}, "Class fast (pool: nvme): no node has said anything about it"),
        ({"csistoragecapacities": [capacity("n1", "0")]}, "Class fast (pool: nvme): no node has any room for it"),
        (
            {"csistoragecapacities": [capacity("n1", "1Gi"), capacity("n2", "3Gi")]},
            "asks for 10 GiB, and no node has that in one volume. The largest: n2: 3 GiB, n1: 1 GiB",
        ),
        ({"plugin": [{**PLUGIN, "status": {}}]}, "sealed-local/sealed-local-x on n1 is not ready"),
    ],
)
def test_the_reason_why_a_claim_waits_is_found(shown: dict[str, list[Any]], text: str) -> None:
    (one,) = found(**shown)
    assert text in one


def test_what_the_driver_said_is_repeated_without_the_words_of_grpc_and_once() -> None:
    text = 'failed to provision with StorageClass "fast": rpc error: code = InvalidArgument desc = parameters: lvmtyp'
    events = [
        warning("PersistentVolumeClaim", "data", "ProvisioningFailed", text, f"2026-11-26T12:00:0{n}Z")
        for n in range(3)
    ]
    assert found(events=events) == [
        "PersistentVolumeClaim data, ProvisioningFailed: code = InvalidArgument desc = parameters: lvmtyp "
    ]


def test_a_bound_claim_whose_pod_cannot_mount_it_tells_the_newest_reason_first() -> None:
    events = [
        warning("Pod", "app", "FailedMount", "old", "2026-11-26T12:00:00Z"),
        warning("Pod", "app", "FailedMount", "new", "2026-11-26T12:00:01Z"),
        warning("Pod", "other", "FailedMount", "not this one"),
    ]
    told = found(persistentvolumeclaims=[BOUND], events=events)
    assert told == ["Pod app, FailedMount: new ", "Pod app, FailedMount: old "]


def test_a_pod_without_a_node_says_what_the_scheduler_says() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: taints"}
    (told,) = found(pods=[{**POD, "status": {"phase": "Pending", "conditions": [condition]}}])
    assert "Pod app has no node: 0/3 nodes are available: taints" in told


def test_a_generic_ephemeral_volume_is_its_pods() -> None:
    made = {**POD, "spec": {"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {}}}]}}
    claim = {**CLAIM, "metadata": {"name": "app-v", "namespace": "team"}}
    assert found("app-v", persistentvolumeclaims=[claim], pods=[made]) == []


def test_a_claim_that_is_being_deleted_names_the_pods_that_hold_it() -> None:
    deleted = {**BOUND, "metadata": {**CLAIM["metadata"], "deletionTimestamp": "2026-11-26T12:00:00Z"}}  # type: ignore[dict-item]
    (told,) = found(persistentvolumeclaims=[deleted])
    assert "used by app" in told
    assert "kubectl delete pod app" in told


def test_of_a_claim_that_is_gone_the_volume_and_its_trouble_are_told() -> None:
    left = {
        "metadata": {"name": "pvc-1"},
        "spec": {"claimRef": {"namespace": "team", "name": "data"}, "csi": {"driver": DRIVER}},
        "status": {"phase": "Released"},
    }
    trouble = warning(
        "PersistentVolume", "pvc-1", "VolumeFailedDelete", "rpc error: code = FailedPrecondition desc = held"
    )
    told = found(persistentvolumeclaims=[], persistentvolumes=[left], events=[trouble])
    assert "its volume pvc-1 is Released" in told[0]
    assert "VolumeFailedDelete: code = FailedPrecondition desc = held" in told[1]
    assert "There is no claim data in namespace team" in found(persistentvolumeclaims=[])[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10Gi", 10 << 30),
        ("1500M", 1_500_000_000),
        ("7", 7),
        ("0.5Ki", 512),
        ("1k", 1000),
        ("many", 0),
        ("3Qi", 0),
        ("", 0),
    ],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: str, size: int) -> None:
    assert quantity_bytes(text) == size


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"items": 1}', b'{"items": [{}]}', b"\xff"])
def test_what_is_no_list_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidInput, match="claims"):
        objects.items(text, Claim, "claims")


def test_only_reading_is_asked_for_and_in_the_context_that_is_meant() -> None:
    kubectl = Kubectl({})
    assert isinstance(main.look(kubectl, "team", "lab"), Seen)
    assert all(argv[:4] == ("kubectl", "--context", "lab", "get") for argv in kubectl.asked)


@pytest.mark.parametrize(
    ("shown", "status", "text"),
    [({}, 0, "Nobody complains"), ({"storageclasses": []}, 1, "  → Classes of sealed-local.csi: none")],
)
def test_the_exit_status_says_whether_something_was_found(
    shown: dict[str, list[Any]],
    status: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(main, "LocalRunner", lambda: Kubectl(shown))
    assert main.main(["data", "-n", "team"]) == status
    assert text in capsys.readouterr().out


def test_a_cluster_that_cannot_be_asked_is_no_healthy_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refused:
        def run(self, argv: Sequence[str], **_: Any) -> Result:
            said = "E1126 memcache.go:265] try\nE1126 memcache.go:265] try\nerror: You must be logged in (Unauthorized)"
            raise CommandError(tuple(argv), 1, "", said)

    monkeypatch.setattr(main, "LocalRunner", Refused)
    assert main.main(["data"]) == 3
    said = capsys.readouterr().err
    assert "Unauthorized" in said
    assert "memcache" not in said
