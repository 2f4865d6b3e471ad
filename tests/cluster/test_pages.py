"""What the pages tell people to do in a cluster, done as they write it. The fixture installs that way, too."""

import re

import pytest

from lab.cluster import store
from lab.cluster.cluster import Cluster
from lab.node import REPOSITORY

from . import objects

pytestmark = pytest.mark.lab


def test_the_quick_starts_plain_volume_runs(cluster: Cluster) -> None:
    page = (REPOSITORY / "docs/quick-start.md").read_text()
    _, found, below = page.partition("\n### A plain volume\n")
    block = re.search(r"```yaml\n(.*?)```", below, re.DOTALL)
    assert found
    assert block is not None
    # No registry is reached from here, and the disks are small.
    text = block[1].replace("debian:12-slim", store.TEST_IMAGE).replace("10Gi", "64Mi")
    (cluster.node.shared / "plain.yaml").write_text(text)
    cluster.shell(f"kubectl apply -f {cluster.node.shared}/plain.yaml")
    cluster.wait(f"{objects.PODS}/plain", ["status", "phase"], "Running")
    assert "/data " in cluster.kubectl("exec", "plain", "--", "cat", "/proc/mounts").text
    cluster.delete(f"{objects.PODS}/plain")
    name = objects.volume_of(cluster, f"{objects.CLAIMS}/scratch")
    cluster.delete(f"{objects.CLAIMS}/scratch")
    cluster.gone(f"{objects.VOLUMES}/{name}")


def test_the_room_of_each_class_is_shown_as_the_page_on_installing_says(cluster: Cluster) -> None:
    page = (REPOSITORY / "docs/install.md").read_text()
    (command,) = re.findall(r"^\$ (kubectl .*csistoragecapacities \\\n.*)$", page, re.MULTILINE)
    head, *lines = cluster.shell(command).text.splitlines()
    assert head.split() == ["CLASS", "NODE", "ROOM"]
    assert {line.split()[0] for line in lines} >= {"local-plain", "local-direct", "local-sealed"}
    assert all("topology.sealed-local.csi/node:lab-node" in line for line in lines)
