"""The Spark example as its files stand, but for what Kata would give: its data and shuffle lie on sealed volumes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from lab.cluster.cluster import GROUP, Cluster
from lab.cluster.examples import SPARK
from lab.sealed import Broker

CLAIMS = "/api/v1/namespaces/default/persistentvolumeclaims"
PODS = "/api/v1/namespaces/default/pods"
MAPS = "/api/v1/namespaces/default/configmaps"
MARKER = "what only the tenant may read"
PLACES = {"data": "/data", "shuffle": "/shuffle"}

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]


def _init_data(broker: Broker, ids: Mapping[str, str]) -> str:
    rules = "".join(
        f'[[volume]]\nname = "{name}"\nid = "{ids[name]}"\nmount = "{place}"\n' for name, place in PLACES.items()
    )
    policy = (
        f"version = 1\n[broker]\nurl = \"https://127.0.0.1:{broker.port}\"\nca = '''{broker.ca}'''\n"
        f"allow_sample = true\n{rules}"
    )
    return f'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"sealed-local.toml" = """{policy}"""\n'


@pytest.fixture
def objects() -> list[dict[str, Any]]:
    """The example's file. The lab's node plays the guest: no Kata, and the broker is on the node's own loopback."""
    found: list[dict[str, Any]] = list(yaml.safe_load_all((SPARK / "spark.yaml").read_text()))
    del found[-1]["spec"]["runtimeClassName"]
    found[-1]["spec"]["hostNetwork"] = True
    return found


@pytest.fixture
def broker(cluster: Cluster) -> Iterator[Broker]:
    made = Broker(cluster.node)
    yield made
    made.stop()


def _run(cluster: Cluster, pod: Mapping[str, Any]) -> str:
    cluster.create(PODS, pod)
    cluster.wait(f"{PODS}/spark", ["status", "phase"], "Succeeded", "Failed", seconds=1800)
    log = cluster.kubectl("logs", "spark").text
    ended = cluster.get(f"{PODS}/spark")
    assert ended["status"]["phase"] == "Succeeded", log[-4000:]
    cluster.delete(f"{PODS}/spark")
    return log


def test_spark_keeps_its_data_over_pods_and_the_disk_shows_noise(
    cluster: Cluster, broker: Broker, objects: list[dict[str, Any]]
) -> None:
    *claims, pod = objects
    uids = [cluster.create(CLAIMS, claim)["metadata"]["uid"] for claim in claims]
    ids = dict(zip(PLACES, (f"pvc-{uid}" for uid in uids), strict=True))
    measured = _init_data(broker, ids)
    broker.allow(measured)
    broker.start()
    cluster.create(MAPS, {"metadata": {"name": "spark-policy"}, "data": {"initdata.toml": measured}})

    assert "accounts 1000, rows 100000, written now" in _run(cluster, pod)
    for volume in ids.values():
        # The kubelet has put it away; this is how whoever has the node looks at it.
        cluster.node.run(["lvchange", "-ay", f"{GROUP}/{volume}"])
        raw = cluster.node.call("lab.story:look_at_raw", device=f"/dev/{GROUP}/{volume}", marker=MARKER)
        print(json.dumps({volume: raw}))
        cluster.node.run(["lvchange", "-an", f"{GROUP}/{volume}"])
        assert (raw["marker"], raw["written_blocks"] > 100, raw["least_bits"] > 7.99) == (False, True, True)
    assert "accounts 1000, rows 100000, found" in _run(cluster, pod)
    for claim in claims:
        cluster.delete(f"{CLAIMS}/{claim['metadata']['name']}")
    for volume in ids.values():
        cluster.gone(f"/api/v1/persistentvolumes/{volume}", seconds=600)
