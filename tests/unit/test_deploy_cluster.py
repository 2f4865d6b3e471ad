"""The chart's cluster helper: off by default, started as its own code reads it, with the rights that it uses."""

from typing import Any

from csi.cluster import settings as cluster_settings
from csi.cluster.helper import Watches
from tests.fakes.chart import CLUSTER, Object, container, of_kind, pod_of, render, the

NAME = "sl-sealed-local-cluster"
KEEPING: Object = {"cluster": {"enabled": True}}


def allowed(role: Object) -> set[tuple[str, str, str, str]]:
    """(group, resource, verb, name) of everything that a role allows; the name is empty where any is meant."""
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def of_cluster(objects: list[Object], kind: str) -> Object:
    return the(objects, kind, NAME)


def test_it_is_off_unless_somebody_asks_for_it() -> None:
    assert [found for found in render() if "cluster" in str(found["metadata"]["name"]).split("-")] == []
    assert of_kind(render(), "CustomResourceDefinition") == of_kind(render(), "Deployment") == []


def test_it_starts_with_what_the_values_say() -> None:
    args = container(pod_of(of_cluster(render(CLUSTER), "Deployment")), "cluster")["args"]
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    settings = cluster_settings.load([word.replace("$(POD_NAME)", "pod-1") for word in args], environment)
    assert (settings.namespace, settings.identity, settings.name) == ("storage", "pod-1", NAME)
    assert settings.rules.release_after_seconds == 86400
    assert settings.rules.driver == "sealed-local.csi"
    [port] = [
        entry["containerPort"]
        for entry in container(pod_of(the(render(CLUSTER), "DaemonSet")), "driver")["ports"]
        if entry["name"] == "metrics"
    ]
    assert settings.pages_port == port


def test_the_driver_and_the_helper_mean_the_same_topology() -> None:
    values: Object = {**KEEPING, "driver": {"name": "x.example.com", "topologyKey": "example.com/node"}}
    args = container(pod_of(of_cluster(render(values), "Deployment")), "cluster")["args"]
    assert {"--driver-name=x.example.com", "--topology-key=example.com/node"} <= set(args)


class _NoApi:
    """Watches that are only asked for their paths."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def test_it_may_read_what_it_watches_and_nothing_else() -> None:
    watches = Watches(_NoApi(), lambda: None)  # type: ignore[arg-type]
    paths = [one.path.strip("/").split("/") for one in watches.all]
    watched = {("" if parts[0] == "api" else parts[1], parts[-1]) for parts in paths}
    role = of_cluster(render(KEEPING), "ClusterRole")
    for verb in ("list", "watch"):
        assert {(group, resource) for group, resource, given, _ in allowed(role) if given == verb} == watched


def writes(role: Object) -> set[tuple[str, str, str, str]]:
    return {entry for entry in allowed(role) if entry[2] not in ("list", "watch")}


def test_it_may_write_its_own_objects_and_nothing_else() -> None:
    objects = render(KEEPING)
    assert writes(of_cluster(objects, "ClusterRole")) == {
        ("", "events", "create", ""),
        ("csi.aliyun.com", "nodelocalstorages", "create", ""),
        ("csi.aliyun.com", "nodelocalstorages", "patch", ""),
        ("csi.aliyun.com", "nodelocalstorages", "delete", ""),
        ("csi.aliyun.com", "nodelocalstorages/status", "patch", ""),
    }
    assert writes(of_cluster(objects, "Role")) == {
        ("coordination.k8s.io", "leases", "create", ""),
        ("coordination.k8s.io", "leases", "get", NAME),
        ("coordination.k8s.io", "leases", "update", NAME),
        ("", "configmaps", "create", ""),
        ("", "configmaps", "get", f"{NAME}-sealed-volumes"),
        ("", "configmaps", "patch", f"{NAME}-sealed-volumes"),
    }


def test_claims_and_volumes_may_be_deleted_only_where_that_was_asked_for() -> None:
    more = writes(of_cluster(render(CLUSTER), "ClusterRole")) - writes(of_cluster(render(KEEPING), "ClusterRole"))
    assert more == {
        ("", "persistentvolumeclaims", "delete", ""),
        ("", "persistentvolumes", "patch", ""),
        ("", "persistentvolumes", "delete", ""),
    }


def test_it_is_bound_to_its_own_account_and_needs_nothing_of_its_node() -> None:
    objects = render(CLUSTER)
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        binding = of_cluster(objects, kind)
        assert binding["roleRef"]["name"] == NAME
        assert [subject["name"] for subject in binding["subjects"]] == [NAME]
    pod = pod_of(of_cluster(objects, "Deployment"))
    assert pod["serviceAccountName"] == NAME
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert [volume.keys() - {"name"} for volume in pod["volumes"]] == [{"projected"}]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container(pod, "cluster")["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_where_the_pages_are_closed_they_are_open_to_the_helper() -> None:
    selector = {
        "app.kubernetes.io/name": "sealed-local",
        "app.kubernetes.io/instance": "sl",
        "app.kubernetes.io/component": "cluster",
    }
    objects = render(CLUSTER)
    [ingress] = the(objects, "NetworkPolicy", "sl-sealed-local-node")["spec"]["ingress"]
    assert {"podSelector": {"matchLabels": selector}} in ingress["from"]
    own = the(objects, "NetworkPolicy", NAME)["spec"]
    assert own["ingress"] == []
    assert own["egress"][1]["ports"] == [{"port": 9808, "protocol": "TCP"}]
    without = the(render({**CLUSTER, "cluster": {"enabled": False}}), "NetworkPolicy", "sl-sealed-local-node")
    assert {"podSelector": {"matchLabels": selector}} not in without["spec"]["ingress"][0]["from"]


def test_open_locals_kinds_keep_their_names() -> None:
    definitions = {
        found["spec"]["names"]["kind"]: found for found in of_kind(render(KEEPING), "CustomResourceDefinition")
    }
    assert definitions.keys() == {"NodeLocalStorage", "NodeLocalStorageInitConfig"}
    assert definitions["NodeLocalStorage"]["spec"]["names"]["shortNames"] == ["nls"]
    assert definitions["NodeLocalStorageInitConfig"]["spec"]["names"]["shortNames"] == ["nlsc"]
    for found in definitions.values():
        assert found["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    other = {"cluster": {"enabled": True, "createDefinitions": False}}
    assert of_kind(render(other), "CustomResourceDefinition") == []
