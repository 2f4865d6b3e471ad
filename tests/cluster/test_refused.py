"""What a person sees where something is asked for that can't be had: events on the claim and the pod that explain it."""

import json

import pytest

from lab.cluster.cluster import Cluster

from . import objects
from .objects import PODS, of_claim, pod

pytestmark = pytest.mark.lab


def test_a_class_with_an_unknown_parameter_is_told_on_the_claim(cluster: Cluster) -> None:
    cluster.create(objects.CLASSES, objects.storage_class("misspelt", {"lvmtyp": "linear"}))
    objects.create_claim(cluster, objects.claim("misspelt", storage_class="misspelt"))
    cluster.create(PODS, pod("misspelt", "true", of_claim("misspelt")))
    told = cluster.wait_event("misspelt", "lvmtyp")
    assert "lvmType" in told
    _clean(cluster, "misspelt")
    cluster.delete(f"{objects.CLASSES}/misspelt")


def test_a_claim_that_fits_nowhere_keeps_its_pod_waiting_with_the_reason(cluster: Cluster) -> None:
    objects.create_claim(cluster, objects.claim("huge", "100Gi"))
    cluster.create(PODS, pod("huge", "true", of_claim("huge")))
    cluster.wait_event("huge", "did not have enough free storage")
    _clean(cluster, "huge")


def test_a_size_that_the_filesystem_refuses_is_told_on_the_claim(cluster: Cluster) -> None:
    cluster.create(objects.CLASSES, objects.storage_class("small", {"csi.storage.k8s.io/fstype": "xfs"}))
    objects.create_claim(cluster, objects.claim("small", storage_class="small"))
    cluster.create(PODS, pod("small", "true", of_claim("small")))
    assert "xfs needs at least 300 MiB, and 64 MiB are asked for" in cluster.wait_event("small", "xfs")
    _clean(cluster, "small")
    cluster.delete(f"{objects.CLASSES}/small")


def test_an_access_mode_that_one_node_cannot_offer_is_told_on_the_claim(cluster: Cluster) -> None:
    objects.create_claim(cluster, objects.claim("shared", modes=["ReadWriteMany"]))
    cluster.create(PODS, pod("shared", "true", of_claim("shared")))
    assert "is not offered on one node" in cluster.wait_event("shared", "MULTI_NODE_MULTI_WRITER")
    _clean(cluster, "shared")


def test_a_runtime_that_does_not_know_a_direct_volume_cannot_write_to_the_host(cluster: Cluster) -> None:
    objects.create_claim(cluster, objects.claim("direct", storage_class="local-direct"))
    script = "echo x 2>/dev/termination-log > /data/file; ls -A /data >> /dev/termination-log"
    told = objects.run(cluster, pod("direct", script, of_claim("direct")))
    assert told.endswith("Read-only file system")
    volume = objects.volume_of(cluster, f"{objects.CLAIMS}/direct")
    cluster.delete(f"{objects.CLAIMS}/direct")
    # The next test counts volumes.
    cluster.gone(f"{objects.VOLUMES}/{volume}")


def test_a_pod_that_brings_a_direct_or_sealed_claim_without_a_runtime_class_is_warned_of(cluster: Cluster) -> None:
    kata = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "kata"}, "handler": "kata"}
    cluster.create("/apis/node.k8s.io/v1/runtimeclasses", kata)
    for storage_class, runtime, warned in (
        ("local-direct", None, True),
        ("local-sealed", None, True),
        ("local-plain", None, False),
        ("local-direct", "kata", False),
    ):
        template = {"spec": objects.claim_spec("64Mi", storage_class)}
        made = pod("brings", "true", {"ephemeral": {"volumeClaimTemplate": template}})
        made["spec"]["runtimeClassName"] = runtime
        file = cluster.node.shared / "pod.json"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", **made}))
        told = cluster.kubectl("create", "--dry-run=server", "-f", str(file)).stderr.decode()
        assert (f"volumes of the class {storage_class} are mounted in a Kata guest" in told) == warned, told
    cluster.delete("/apis/node.k8s.io/v1/runtimeclasses/kata")


def _clean(cluster: Cluster, name: str) -> None:
    cluster.delete(f"{PODS}/{name}")
    cluster.delete(f"{objects.CLAIMS}/{name}")
    assert not objects.volumes(cluster)
