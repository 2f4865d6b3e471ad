"""What many claims at once cost: printed as figures, and bounded only where a bound can't depend on the machine."""

import os
import re
import time

import pytest

from lab.cluster.cluster import Cluster

from . import objects
from .objects import CLAIMS, PODS, of_claim, pod

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

COUNT = int(os.environ.get("SEALED_LOCAL_CLAIMS", "10"))
"""Claims and pods. The lab's node has one processor for the control plane, too: a hundred take it seven minutes."""
_WRITES = ("POST", "PUT", "PATCH", "DELETE")
_ENDPOINT = "--endpoint=unix:///csi/csi.sock"


def _api_writes(cluster: Cluster) -> float:
    """Changes that anybody asked the API server for, but for the leases of those that live."""
    text = cluster.kubectl("get", "--raw", "/metrics").text
    lines = re.findall(r"^apiserver_request_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    told = [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(count)) for labels, count in lines]
    return sum(count for labels, count in told if labels["verb"] in _WRITES and labels["resource"] != "leases")


def _driver_use(cluster: Cluster) -> tuple[float, int]:
    """Seconds of CPU of the driver and the commands that it has waited for, and its resident KiB at most."""
    pid = cluster.node.run(["pgrep", "-o", "-f", "--", _ENDPOINT]).text.split()[0]
    times = cluster.node.read(f"/proc/{pid}/stat").decode().rpartition(")")[2].split()[11:15]
    (most,) = re.findall(r"VmHWM:\s+(\d+) kB", cluster.node.read(f"/proc/{pid}/status").decode())
    return sum(map(int, times)) / 100, int(most)


def test_many_claims_at_once_all_get_their_pods_running(cluster: Cluster) -> None:
    names = [f"many-{number}" for number in range(COUNT)]
    writes, (cpu, _), began = _api_writes(cluster), _driver_use(cluster), time.monotonic()
    for name in names:
        objects.create_claim(cluster, objects.claim(name, "16Mi"))
        cluster.create(PODS, pod(name, "echo x > /data/file && sleep 100000", of_claim(name)))
    running = []
    for name in names:
        cluster.wait(f"{PODS}/{name}", ["status", "phase"], "Running", seconds=1800)
        running.append(time.monotonic() - began)
    used, most = _driver_use(cluster)
    volumes = [objects.volume_of(cluster, f"{CLAIMS}/{name}") for name in names]
    print(
        f"\n{COUNT} claims and pods at once: the last runs after {running[-1]:.0f} s, {running[-1] / COUNT:.1f} s a claim; "
        f"{(_api_writes(cluster) - writes) / COUNT:.1f} API writes a claim by all parts together, 2 of them the test's; "
        f"driver with LVM {(used - cpu) / COUNT:.2f} s of CPU a claim, {most / 1024:.0f} MiB resident at most"
    )
    assert set(volumes) <= set(objects.volumes(cluster))
    assert len(set(volumes)) == COUNT
    for name in names:
        cluster.request("DELETE", f"{PODS}/{name}")
        cluster.request("DELETE", f"{CLAIMS}/{name}")
    for volume in volumes:
        cluster.gone(f"{objects.VOLUMES}/{volume}", seconds=1800)
    assert not set(volumes) & set(objects.volumes(cluster))
