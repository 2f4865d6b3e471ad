"""The kinds of volumes and of use that Kubernetes offers, each with a pod of an ordinary runtime."""

from typing import Any

import pytest

from lab.cluster.cluster import Cluster

from . import objects
from .objects import PODS, of_claim, pod

pytestmark = pytest.mark.lab

SETS = "/apis/apps/v1/namespaces/default/statefulsets"


def test_a_block_volume_is_a_device_that_keeps_what_was_written(cluster: Cluster) -> None:
    objects.create_claim(cluster, objects.claim("block", block=True))
    write = "printf kept | dd of=/dev/volume conv=fsync && blockdev --getsize64 /dev/volume > /dev/termination-log"
    assert objects.run(cluster, pod("block-writes", write, of_claim("block"), block=True)) == str(64 * 1024 * 1024)
    read = "dd if=/dev/volume bs=4 count=1 of=/dev/termination-log"
    assert objects.run(cluster, pod("block-reads", read, of_claim("block"), block=True)) == "kept"
    cluster.delete(f"{objects.CLAIMS}/block")


def test_a_generic_ephemeral_volume_lives_as_long_as_its_pod(cluster: Cluster) -> None:
    template = {"volumeClaimTemplate": {"spec": objects.claim_spec("64Mi", "local-plain")}}
    wanted = pod("scratch", "echo x > /data/file && sleep 100000", {"ephemeral": template})
    cluster.create(PODS, wanted)
    cluster.wait(f"{PODS}/scratch", ["status", "phase"], "Running")
    claim = f"{objects.CLAIMS}/scratch-data"
    name = objects.volume_of(cluster, claim)
    assert name in objects.volumes(cluster)
    cluster.delete(f"{PODS}/scratch")
    cluster.gone(claim)
    cluster.gone(f"{objects.VOLUMES}/{name}")
    assert name not in objects.volumes(cluster)


def test_a_volume_for_one_pod_is_not_given_to_a_second(cluster: Cluster) -> None:
    objects.create_claim(cluster, objects.claim("alone", modes=["ReadWriteOncePod"]))
    cluster.create(PODS, pod("first", "sleep 100000", of_claim("alone")))
    cluster.wait(f"{PODS}/first", ["status", "phase"], "Running")
    cluster.create(PODS, pod("second", "true", of_claim("alone")))
    cluster.wait_event("second", "ReadWriteOncePod access mode already in-use by another pod")
    cluster.delete(f"{PODS}/first")
    cluster.wait(f"{PODS}/second", ["status", "phase"], "Succeeded")
    cluster.delete(f"{PODS}/second")
    cluster.delete(f"{objects.CLAIMS}/alone")


def test_an_ordinary_user_writes_by_the_group_of_the_pod(cluster: Cluster) -> None:
    objects.create_claim(cluster, objects.claim("group"))
    security = {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000}
    script = "echo x > /data/file && stat -c '%u %g' /data/file > /dev/termination-log"
    assert objects.run(cluster, pod("group", script, of_claim("group"), security=security)) == "1000 2000"
    cluster.delete(f"{objects.CLAIMS}/group")


@pytest.mark.parametrize(("claim", "mount"), [({"read_only": True}, {}), ({}, {"readOnly": True})])
def test_a_read_only_volume_refuses_writes(cluster: Cluster, claim: dict[str, bool], mount: dict[str, Any]) -> None:
    """Read-only for the whole pod, and for one container."""
    objects.create_claim(cluster, objects.claim("still"))
    objects.run(cluster, pod("still-writes", "echo kept > /data/file", of_claim("still")))
    script = "echo x 2>/dev/null > /data/other && exit 1; cat /data/file > /dev/termination-log"
    assert objects.run(cluster, pod("still-reads", script, of_claim("still", **claim), mount=mount)) == "kept"
    cluster.delete(f"{objects.CLAIMS}/still")


def test_two_pods_share_a_volume_by_folders(cluster: Cluster) -> None:
    objects.create_claim(cluster, objects.claim("folders"))
    for name in ("one", "two"):
        script = f"echo {name} > /data/file"
        objects.run(cluster, pod(f"folder-{name}", script, of_claim("folders"), mount={"subPath": name}))
    script = "cat /data/one/file /data/two/file > /dev/termination-log"
    assert objects.run(cluster, pod("folder-reads", script, of_claim("folders"))) == "one\ntwo"
    cluster.delete(f"{objects.CLAIMS}/folders")


def test_each_replica_of_a_stateful_set_keeps_its_own_volume(cluster: Cluster) -> None:
    # A replica is ready when it has added a line; a second line is a second life on the same volume.
    script = "hostname >> /data/lives && touch /ready && sleep 100000"
    cluster.create(SETS, _stateful_set("kept", script))
    cluster.wait(f"{SETS}/kept", ["status", "readyReplicas"], 3, seconds=600)
    for number in range(3):
        cluster.delete(f"{PODS}/kept-{number}")
    cluster.wait(f"{SETS}/kept", ["status", "readyReplicas"], 3, seconds=600)
    names = [objects.volume_of(cluster, f"{objects.CLAIMS}/data-kept-{number}") for number in range(3)]
    for number in range(3):
        lives = cluster.kubectl("exec", f"kept-{number}", "--", "cat", "/data/lives").text.split()
        assert lives == [f"kept-{number}"] * 2
    cluster.delete(f"{SETS}/kept")
    for number in range(3):
        cluster.gone(f"{objects.CLAIMS}/data-kept-{number}")
        cluster.gone(f"{objects.VOLUMES}/{names[number]}")
    assert not set(names) & set(objects.volumes(cluster))


def _stateful_set(name: str, script: str) -> dict[str, Any]:
    spec = objects.pod_spec(script, restart="Always")
    spec["containers"][0]["readinessProbe"] = {
        "exec": {"command": ["test", "-f", "/ready"]},
        "periodSeconds": 2,
        "timeoutSeconds": 10,
    }
    return {
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "replicas": 3,
            "podManagementPolicy": "Parallel",
            # The claims go with the set, so that what the test made is gone when it ends.
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": objects.claim_spec("64Mi", "local-plain")}],
        },
    }
