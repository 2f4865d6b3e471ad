"""Parts that end at the worst moment, and a power cut: everything recovers without a hand."""

import time
from collections.abc import Iterator

import pytest

from lab.cluster.cluster import Cluster
from lab.node import wait_until

from . import objects
from .objects import PODS, of_claim, pod

pytestmark = pytest.mark.lab

NUMBERS = range(3)


@pytest.fixture
def wanted(cluster: Cluster) -> Iterator[list[str]]:
    """Claims and pods that are just asked for; in the end all pods have run, and nothing is left of anything."""
    before = set(objects.volumes(cluster))
    names = [f"trouble-{number}" for number in NUMBERS]
    for name in names:
        objects.create_claim(cluster, objects.claim(name, "256Mi"))
        cluster.create(PODS, pod(name, "echo kept > /data/file && sync", of_claim(name)))
    yield names
    for name in names:
        cluster.wait(f"{PODS}/{name}", ["status", "phase"], "Succeeded", seconds=600)
    volumes = [objects.volume_of(cluster, f"{objects.CLAIMS}/{name}") for name in names]
    assert set(objects.volumes(cluster)) - before == set(volumes)
    _delete(cluster, names, volumes)
    # What an earlier test left may go meanwhile.
    assert set(objects.volumes(cluster)) <= before


def _delete(cluster: Cluster, names: list[str], volumes: list[str]) -> None:
    """Delete pods and claims, and end the driver as soon as it wipes the first volume."""
    for name in names:
        cluster.delete(f"{PODS}/{name}")
        cluster.request("DELETE", f"{objects.CLAIMS}/{name}")
    wait_until("a volume is being deleted", 300, lambda: "deleting" in _tags(cluster) or not _tags(cluster))
    _kill_driver(cluster)
    for name, volume in zip(names, volumes, strict=True):
        cluster.gone(f"{objects.CLAIMS}/{name}")
        cluster.gone(f"{objects.VOLUMES}/{volume}", seconds=600)


def _tags(cluster: Cluster) -> str:
    return cluster.node.run(["lvs", "--noheadings", "-o", "lv_tags"]).text.strip()


def _kill_driver(cluster: Cluster) -> None:
    """kill -9 of the driver's process; its container is started again by the kubelet."""
    pids = cluster.node.run(["pgrep", "-f", "--", "--endpoint=unix:///csi/csi.sock"]).text.split()
    cluster.node.run(["kill", "-9", *pids])


def test_the_driver_killed_while_it_makes_volumes_makes_each_once(cluster: Cluster, wanted: list[str]) -> None:
    wait_until("the first volume", 300, lambda: objects.volumes(cluster))
    _kill_driver(cluster)


def test_the_kubelet_killed_while_pods_start(cluster: Cluster, wanted: list[str]) -> None:
    objects.volume_of(cluster, f"{objects.CLAIMS}/{wanted[0]}")
    cluster.kill("kubelet")
    cluster.start("kubelet")


def test_the_api_server_away_for_a_minute(cluster: Cluster, wanted: list[str]) -> None:
    wait_until("the first volume", 300, lambda: objects.volumes(cluster))
    cluster.kill("kube-apiserver")
    time.sleep(60)
    cluster.start("kube-apiserver")
    cluster.wait_ready()


def test_a_power_cut_loses_nothing_and_the_pod_comes_back(cluster: Cluster) -> None:
    objects.create_claim(cluster, objects.claim("power"))
    wanted = pod("power", "echo life >> /data/lives && sync && sleep 100000", of_claim("power"))
    wanted["spec"]["restartPolicy"] = "Always"
    cluster.create(PODS, wanted)
    path = f"{PODS}/power"
    cluster.wait(path, ["status", "phase"], "Running")
    lives = ["exec", "power", "--", "cat", "/data/lives"]
    wait_until("the first life", 60, lambda: cluster.kubectl(*lives, check=False).text == "life\n")
    cluster.crash()
    cluster.boot()
    # What the API says of the pod is of before, until the kubelet has made it anew.
    cluster.wait(path, ["status", "containerStatuses", 0, "restartCount"], 1, 2, seconds=600)
    cluster.wait(path, ["status", "containerStatuses", 0, "ready"], True)
    wait_until("the second life", 60, lambda: cluster.kubectl(*lives, check=False).text == "life\nlife\n")
    cluster.delete(path)
    name = objects.volume_of(cluster, f"{objects.CLAIMS}/power")
    cluster.delete(f"{objects.CLAIMS}/power")
    cluster.gone(f"{objects.VOLUMES}/{name}", seconds=600)
    assert name not in objects.volumes(cluster)
