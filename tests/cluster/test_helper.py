"""The cluster helper in the real cluster, with the chart's own rights: what it tells, keeps and reports."""

import json
import re
from collections.abc import Iterator

import pytest

from lab.cluster import parts
from lab.cluster.cluster import GROUP, NAMESPACE, Cluster
from lab.node import REPOSITORY, wait_until

from . import objects
from .objects import PODS, of_claim, pod

pytestmark = pytest.mark.lab

_CHART = REPOSITORY / "deploy/helm/sealed-local"
_STORAGE = f"/apis/csi.aliyun.com/v1alpha1/nodelocalstorages/{parts.NODE}"
_REPORT = f"/api/v1/namespaces/{NAMESPACE}/configmaps/sealed-local-cluster-sealed-volumes"
_DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/sealed-local-cluster"


def _upgrade(cluster: Cluster, *values: str) -> None:
    sets = " ".join(f"--set {value}" for value in values)
    cluster.shell(f"helm upgrade sealed-local {_CHART} --namespace {NAMESPACE} --reuse-values {sets}")


@pytest.fixture(scope="module")
def helped(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster in which the helper runs, and waits as short as the chart allows."""
    _upgrade(cluster, "cluster.enabled=true", "cluster.replicas=1", "cluster.settleSeconds=60")
    cluster.wait(_DEPLOYMENT, ["status", "readyReplicas"], 1)
    yield cluster
    _upgrade(cluster, "cluster.enabled=false")


def test_kubectl_get_nls_shows_the_node_as_it_is(helped: Cluster) -> None:
    info = helped.wait(_STORAGE, ["status", "nodeStorageInfo", "state", "type"], "DiskReady")["status"][
        "nodeStorageInfo"
    ]
    (group,) = [found for found in info["volumeGroups"] if found["name"] == GROUP]
    words = helped.node.run(["vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_size", GROUP])
    assert group["total"] == int(words.text)
    shown = helped.kubectl("get", "nls").text
    assert re.search(rf"^{parts.NODE} +DiskReady +Running ", shown, re.MULTILINE), shown


def test_an_open_local_configuration_becomes_the_nodes_spec_and_what_it_lacks_is_told(helped: Cluster) -> None:
    blocks = {"resourceToBeInited": {"vgs": [{"name": "fast-0", "devices": ["/dev/nvme0n1"]}]}}
    folder = "/apis/csi.aliyun.com/v1alpha1/nodelocalstorageinitconfigs"
    kind = {"apiVersion": "csi.aliyun.com/v1alpha1", "kind": "NodeLocalStorageInitConfig"}
    helped.create(folder, {**kind, "metadata": {"name": "open-local"}, "spec": {"globalConfig": blocks}})
    helped.wait(_STORAGE, ["spec", "resourceToBeInited", "vgs", {"name": "fast-0"}, "name"], "fast-0")
    helped.wait_event(parts.NODE, "the configuration asks for volume group fast-0")
    helped.delete(f"{folder}/open-local")


def test_a_pod_of_runc_on_a_direct_claim_is_warned(helped: Cluster) -> None:
    path = objects.create_claim(helped, objects.claim("unheard", storage_class="local-direct"))
    helped.create(PODS, pod("unheard", "true", of_claim("unheard")))
    said = helped.wait_event("unheard", "a Kata guest mounts it")
    assert "this pod has no runtimeClassName" in said
    helped.delete(f"{PODS}/unheard")
    helped.delete(path)


def test_a_volume_without_a_persistent_volume_is_told_and_left_alone(helped: Cluster) -> None:
    path = objects.create_claim(helped, objects.claim("left"))
    objects.run(helped, pod("left", "echo kept > /data/file", of_claim("left")))
    volume = objects.volume_of(helped, path)
    # As after a restore of etcd that knows nothing of it: the finalizers are taken, and no driver is asked.
    helped.kubectl("patch", "pv", volume, "--type=merge", "-p", '{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}')
    helped.delete(path)
    helped.kubectl("patch", "pv", volume, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    helped.kubectl("delete", "pv", volume, "--ignore-not-found")
    helped.wait_event(parts.NODE, f"{GROUP}/{volume}")
    assert volume in objects.volumes(helped)
    helped.node.run(["lvremove", "-qq", "-f", f"{GROUP}/{volume}"])


def test_a_sealed_volume_that_is_deleted_stays_in_the_report(helped: Cluster) -> None:
    path = objects.create_claim(helped, objects.claim("secret", "128Mi", storage_class="local-sealed", block=True))
    objects.run(helped, pod("secret", "true", of_claim("secret"), block=True))
    volume = objects.volume_of(helped, path)
    wait_until("the report has it", 120, lambda: volume in _reported(helped))
    helped.delete(path)
    helped.gone(f"{objects.VOLUMES}/{volume}")
    wait_until("the report says that it is gone", 120, lambda: "volumeDeleted" in _reported(helped)[volume])
    assert (_reported(helped)[volume]["namespace"], _reported(helped)[volume]["claim"]) == ("default", "secret")


def _reported(cluster: Cluster) -> dict[str, dict[str, str]]:
    answer = cluster.request("GET", _REPORT)
    entries = answer["body"].get("data") or {} if answer["status"] == 200 else {}
    return {name: json.loads(text) for name, text in entries.items()}


def test_it_was_refused_nothing(helped: Cluster) -> None:
    """The rights of the chart are enough: last, when everything was done once."""
    logs = helped.kubectl("-n", NAMESPACE, "logs", "deployment/sealed-local-cluster").text
    assert "has the lease" in logs
    assert " 403" not in logs
