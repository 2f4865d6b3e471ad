"""Which of several nodes the real scheduler takes. Three nodes are objects alone: room, labels, and no kubelet."""

from collections.abc import Iterator
from typing import Any

import pytest

from lab.cluster import parts
from lab.cluster.cluster import Cluster
from lab.node import wait_until

from . import objects
from .objects import CLAIMS, PODS

pytestmark = pytest.mark.lab

NODES = "/api/v1/nodes"
CAPACITIES = "/apis/storage.k8s.io/v1/namespaces/default/csistoragecapacities"
EVENTS = "/api/v1/namespaces/default/events"
TOPOLOGY = "topology.sealed-local.csi/node"
SELECTED = ["metadata", "annotations", "volume.kubernetes.io/selected-node"]
ROOM = {"small": "10Gi", "middle": "50Gi", "large": "100Gi"}


@pytest.fixture(scope="module")
def simulated(cluster: Cluster) -> Iterator[None]:
    """Three nodes that are equal but for their free room."""
    for name, room in ROOM.items():
        cluster.create(NODES, _node(name))
        capacity = {"nodeTopology": {"matchLabels": {TOPOLOGY: name}}, "storageClassName": "local-plain"}
        cluster.create(CAPACITIES, {"metadata": {"name": name}, "capacity": room, **capacity})
    yield
    for name in ROOM:
        cluster.delete(f"{CAPACITIES}/{name}")
        cluster.delete(f"{NODES}/{name}")


def _node(name: str) -> dict[str, Any]:
    size = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    return {
        "metadata": {"name": name, "labels": {TOPOLOGY: name, "simulated": "true"}},
        "status": {"capacity": size, "allocatable": size, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def _pod(name: str, claims: list[str], where: dict[str, str], scheduler: str) -> dict[str, Any]:
    wanted = objects.pod(name, "true", objects.of_claim(claims[0]))
    more = [{"name": claim, **objects.of_claim(claim)} for claim in claims[1:]]
    wanted["spec"]["volumes"].extend(more)
    wanted["spec"] |= {"nodeSelector": where, "schedulerName": scheduler, "tolerations": [{"operator": "Exists"}]}
    return wanted


@pytest.mark.parametrize(
    ("scheduler", "sizes", "node"),
    [
        ("default-scheduler", ["5Gi"], "large"),
        ("binpack", ["5Gi"], "small"),
        ("binpack", ["20Gi"], "middle"),
        ("default-scheduler", ["6Gi", "6Gi"], "large"),
    ],
)
def test_the_scheduler_spreads_and_packs_by_room(
    cluster: Cluster, simulated: None, scheduler: str, sizes: list[str], node: str
) -> None:
    claims = [f"{scheduler}-{number}" for number in range(len(sizes))]
    for claim, size in zip(claims, sizes, strict=True):
        objects.create_claim(cluster, objects.claim(claim, size))
    cluster.create(PODS, _pod("placed", claims, {"simulated": "true"}, scheduler))
    for claim in claims:
        chosen = cluster.wait(f"{CLAIMS}/{claim}", SELECTED, *ROOM)
        assert chosen["metadata"]["annotations"][SELECTED[-1]] == node
    cluster.delete(f"{PODS}/placed")
    for claim in claims:
        cluster.delete(f"{CLAIMS}/{claim}")


def test_two_claims_that_fit_only_one_by_one_keep_their_pod_waiting_with_the_reason(cluster: Cluster) -> None:
    claims = ["one", "two"]
    for claim in claims:
        objects.create_claim(cluster, objects.claim(claim, "2500Mi"))
    cluster.create(PODS, _pod("together", claims, {TOPOLOGY: parts.NODE}, "default-scheduler"))
    wait_until("the room is told", 300, lambda: _refusals(cluster))
    # Only the claim that came first has a volume, and the pod waits instead of running with half of its data.
    (told, *_) = _refusals(cluster)
    assert told["reason"] == "ProvisioningFailed"
    assert "sealed-local has room for" in told["message"]
    (other,) = set(claims) - {told["involvedObject"]["name"]}
    volume = objects.volume_of(cluster, f"{CLAIMS}/{other}")
    assert objects.volumes(cluster) == [volume]
    assert cluster.get(f"{PODS}/together")["status"]["phase"] == "Pending"
    cluster.delete(f"{PODS}/together")
    for claim in claims:
        cluster.delete(f"{CLAIMS}/{claim}")
    cluster.gone(f"{objects.VOLUMES}/{volume}")
    assert not objects.volumes(cluster)


def _refusals(cluster: Cluster) -> list[dict[str, Any]]:
    events = cluster.get(EVENTS)["items"]
    mine = [event for event in events if event["involvedObject"]["name"] in ("one", "two")]
    return [event for event in mine if "has room for" in event["message"]]
