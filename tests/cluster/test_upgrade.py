"""The driver is replaced under a running pod and brought back, by the commands of docs/install.md.

The next version's image has the same code under another tag: what is tested is the replacement.
"""

import pytest
import yaml

from lab.cluster import documented, parts, store
from lab.cluster.cluster import GROUP, NAMESPACE, Cluster, values
from lab.node import REPOSITORY

from . import objects
from .objects import PODS, of_claim, pod

pytestmark = pytest.mark.lab

_PAGE = (REPOSITORY / "docs/install.md").read_text()
_NEXT = "0.1.1-lab"


def _driver(cluster: Cluster) -> tuple[str, str]:
    """The image's tag and the uid of the one driver that runs."""
    pods = cluster.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
    (alive,) = [found for found in pods if found["spec"].get("nodeName") == parts.NODE]
    (driver,) = [each for each in alive["spec"]["containers"] if each["name"] == "driver"]
    return driver["image"].rpartition(":")[2], alive["metadata"]["uid"]


def _mounts(cluster: Cluster, volume: str) -> list[str]:
    """Every mount of a volume, with the number that the kernel gave it: one made anew has another."""
    lines = cluster.node.run(["cat", "/proc/self/mountinfo"]).text.splitlines()
    device = cluster.node.run(["lsblk", "-dno", "MAJ:MIN", f"/dev/{GROUP}/{volume}"]).text.strip()
    return [line for line in lines if line.split()[2] == device]


def test_the_driver_is_upgraded_and_rolled_back_and_nothing_is_mounted_anew(cluster: Cluster) -> None:
    claim = objects.create_claim(cluster, objects.claim("steady"))
    cluster.create(PODS, pod("steady", "echo kept > /data/file && sleep 100000", of_claim("steady")))
    before = cluster.wait(f"{PODS}/steady", ["status", "phase"], "Running")
    volume = objects.volume_of(cluster, claim)
    mounts = _mounts(cluster, volume)
    assert len(mounts) == 2, "staging and the pod's"
    first = _driver(cluster)

    _tag_next(cluster, first[0])
    _carry_out(cluster, "## Upgrade")
    second = _driver(cluster)
    assert second[0] == _NEXT
    assert _mounts(cluster, volume) == mounts
    _a_volume_lives(cluster, "upgraded")

    _carry_out(cluster, "## Rollback")
    third = _driver(cluster)
    assert third[0] == first[0]
    assert len({first[1], second[1], third[1]}) == 3
    assert _mounts(cluster, volume) == mounts
    _a_volume_lives(cluster, "rolled-back")

    after = cluster.get(f"{PODS}/steady")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    cluster.delete(f"{PODS}/steady")
    cluster.delete(claim)
    cluster.gone(f"{objects.VOLUMES}/{volume}")


def _tag_next(cluster: Cluster, version: str) -> None:
    """Give the product's image its second name where the kubelet looks for images."""
    names = [f"{store.DOCUMENTED}:{version}", f"{store.DOCUMENTED}:{_NEXT}"]
    cluster.node.run(["ctr", "--address", parts.CONTAINERD, "--namespace", "k8s.io", "images", "tag", *names])
    node = {"repository": store.DOCUMENTED, "tag": _NEXT}
    mine = {**values(), "images": {**values()["images"], "node": node}}
    (cluster.node.shared / "my-values.yaml").write_text(yaml.safe_dump(mine))


def _carry_out(cluster: Cluster, heading: str) -> None:
    """What the page says below a heading; returns when every driver is replaced."""
    mine = str(cluster.node.shared / "my-values.yaml")
    for command in documented.commands(_PAGE, heading):
        cluster.shell(command.replace("my-values.yaml", mine))
    status = f"kubectl --namespace {NAMESPACE} rollout status daemonset/sealed-local-node-default"
    cluster.shell(status)


def _a_volume_lives(cluster: Cluster, name: str) -> None:
    """A claim from its first pod to its end, by the driver that runs now."""
    claim = objects.create_claim(cluster, objects.claim(name))
    objects.run(cluster, pod(name, "echo x > /data/file", of_claim(name)))
    volume = objects.volume_of(cluster, claim)
    cluster.delete(claim)
    cluster.gone(f"{objects.VOLUMES}/{volume}")
