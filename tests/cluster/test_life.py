"""The main job in a real cluster: a claim from its binding to the wiping of its volume."""

import pytest

from lab.cluster import parts
from lab.cluster.cluster import NAMESPACE, Cluster

from . import objects

pytestmark = pytest.mark.lab


def test_a_claim_lives_from_its_binding_to_the_wiping_of_its_volume(cluster: Cluster) -> None:
    claim = objects.create_claim(cluster, objects.claim("life"))
    write = "echo kept-by-the-volume > /data/file && sync"
    objects.run(cluster, objects.pod("life-writes", write, objects.of_claim("life")))

    name = objects.volume_of(cluster, claim)
    volume = cluster.get(f"{objects.VOLUMES}/{name}")
    (term,) = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "topology.sealed-local.csi/node", "operator": "In", "values": [parts.NODE]}
    ]
    assert volume["spec"]["capacity"]["storage"] == "64Mi"
    assert name in objects.volumes(cluster)
    where = objects.extents(cluster, name)
    assert objects.on_disk(cluster, where, "kept-by-the-volume")

    read = "cat /data/file > /dev/termination-log"
    assert objects.run(cluster, objects.pod("life-reads", read, objects.of_claim("life"))) == "kept-by-the-volume"

    cluster.delete(claim)
    cluster.gone(f"{objects.VOLUMES}/{name}")
    assert name not in objects.volumes(cluster)
    assert not objects.on_disk(cluster, where, "kept-by-the-volume")


def test_the_scheduler_knows_the_room_of_each_class(cluster: Cluster) -> None:
    path = f"/apis/storage.k8s.io/v1/namespaces/{NAMESPACE}/csistoragecapacities"
    found = {item["storageClassName"]: item for item in cluster.get(path)["items"]}
    assert set(found) == {"local-plain", "local-direct", "local-sealed"}
    for item in found.values():
        assert item["nodeTopology"]["matchLabels"] == {"topology.sealed-local.csi/node": parts.NODE}
        assert item["metadata"]["ownerReferences"][0]["kind"] == "DaemonSet"
