"""The chart's node plugin: what runs in its pods is what the driver's own code takes, with no more rights than it needs."""

import json
import re
from pathlib import Path

import pytest

from csi.node import parameters as class_parameters
from csi.node.rpc import controller, identity, node
from csi.node.rpc.proto import csi_pb2
from tests.fakes.chart import (
    ROOT,
    TWO_POOLS,
    VALUES,
    VARIANTS,
    Object,
    container,
    host_paths,
    of_kind,
    pod_of,
    pods,
    render,
    started,
    the,
)

# The driver's container


@pytest.mark.parametrize("variant", ["defaults", "two pools", "everything the node can have"])
def test_the_driver_takes_the_command_line_and_the_configuration(tmp_path: Path, variant: str) -> None:
    values = VARIANTS[variant]
    wanted = {**VALUES["driver"], **values.get("driver", {})}
    daemons = started(render(values), tmp_path)
    assert len(daemons) == len(values.get("nodePools", [1]))
    for daemon in daemons:
        given = daemon.settings
        assert given.node_id == "worker-1"
        assert given.driver_name == wanted["name"]
        assert given.topology_key == (wanted["topologyKey"] or f"topology.{wanted['name']}/node")
        assert given.max_volumes == wanted["maxVolumes"]
        assert given.log_level == wanted["logLevel"]
        assert str(given.kubelet_dir) == values.get("kubeletDir", "/var/lib/kubelet")
        assert bool(given.lvm_prefix) == daemon.pod.get("hostPID", False) == wanted["hostPrograms"]
        assert given.config.udev == daemon.pod.get("hostIPC", False) == ("udev" in host_paths(daemon.pod))


def test_the_default_configuration_takes_no_disk(tmp_path: Path) -> None:
    [daemon] = started(render(), tmp_path)
    assert [pool.devices for pool in daemon.settings.config.pools] == [()]
    assert daemon.settings.config.include == ()


@pytest.mark.parametrize("variant", ["defaults", "two pools", "everything the node can have"])
def test_the_drivers_paths_are_mounted_where_it_looks(tmp_path: Path, variant: str) -> None:
    for daemon in started(render(VARIANTS[variant]), tmp_path):
        mounts = {mount["name"]: mount for mount in container(daemon.pod, "driver")["volumeMounts"]}
        paths, given = host_paths(daemon.pod), daemon.settings
        assert paths["kubelet"] == mounts["kubelet"]["mountPath"] == str(given.kubelet_dir)
        assert mounts["kubelet"]["mountPropagation"] == "Bidirectional"
        assert paths["kata"] == mounts["kata"]["mountPath"] == str(given.registry_root)
        assert paths["state"] == mounts["state"]["mountPath"] == str(given.state_dir)
        assert given.endpoint == f"unix://{mounts['socket']['mountPath']}/csi.sock"
        socket = f"{paths['socket']}/csi.sock"
        assert f"--kubelet-registration-path={socket}" in container(daemon.pod, "registrar")["args"]
        assert paths["socket"] == f"{given.kubelet_dir}/plugins/{given.driver_name}"


def test_every_path_of_the_node_is_documented_and_every_documented_one_is_mounted() -> None:
    section = (ROOT / "docs/node.md").read_text().partition("## Privileges and mounts")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `/")]
    documented = {path for row in rows for path in re.findall(r"`(/[^`]+)`", row)}
    assert len(documented) >= 8
    pod = pod_of(the(render({"nodePools": [{"name": "u", "config": {"udev": True}}]}), "DaemonSet"))
    names = {mount["name"] for mount in container(pod, "driver")["volumeMounts"]}
    paths = host_paths(pod)
    assert {path for name, path in paths.items() if name in names} == documented
    # The registrar's own folder is no mount of the driver's; docs/install.md has it.
    assert {path for name, path in paths.items() if name not in names} == {"/var/lib/kubelet/plugins_registry"}
    assert "`/var/lib/kubelet/plugins_registry`" in (ROOT / "docs/install.md").read_text()


def test_running_calls_get_their_time_at_the_end() -> None:
    assert pod_of(the(render(), "DaemonSet"))["terminationGracePeriodSeconds"] > 60


@pytest.mark.parametrize("sidecar", [True, False])
def test_a_driver_that_hangs_is_noticed(sidecar: bool) -> None:
    pod = pod_of(the(render({"node": {"livenessprobe": {"enabled": sidecar}}}), "DaemonSet"))
    driver = container(pod, "driver")
    port = driver["livenessProbe"]["httpGet"]["port"]
    assert port == driver["startupProbe"]["httpGet"]["port"] == ("healthz" if sidecar else "metrics")
    numbers = {entry["name"]: entry["containerPort"] for entry in driver["ports"]}
    assert f"--metrics-address=0.0.0.0:{numbers['metrics']}" in driver["args"]
    assert {entry["name"] for entry in pod["containers"]} >= ({"livenessprobe"} if sidecar else set())
    if sidecar:
        assert f"--health-port={numbers['healthz']}" in container(pod, "livenessprobe")["args"]


# Sidecars and objects follow what the driver offers


RPC = csi_pb2.ControllerServiceCapability.RPC
NODE_RPC = csi_pb2.NodeServiceCapability.RPC


def test_the_pod_has_the_sidecars_of_the_drivers_capabilities_and_no_other() -> None:
    offered = controller._CAPABILITIES
    wanted = {"driver", "registrar", "livenessprobe"}
    wanted |= {"provisioner"} if RPC.CREATE_DELETE_VOLUME in offered else set()
    wanted |= {"resizer"} if RPC.EXPAND_VOLUME in offered else set()
    wanted |= {"snapshotter"} if RPC.CREATE_DELETE_SNAPSHOT in offered else set()
    assert {entry["name"] for entry in pod_of(the(render(), "DaemonSet"))["containers"]} == wanted
    expands = NODE_RPC.EXPAND_VOLUME in node._CAPABILITIES or RPC.EXPAND_VOLUME in offered
    classes = of_kind(render(), "StorageClass")
    assert {found.get("allowVolumeExpansion", False) for found in classes} == {expands}


def test_the_provisioner_works_for_its_own_node_and_reports_room() -> None:
    offered = controller._CAPABILITIES
    assert RPC.GET_CAPACITY in offered
    assert csi_pb2.PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS in identity._SERVICES
    provisioner = container(pod_of(the(render(), "DaemonSet")), "provisioner")
    assert {
        "--node-deployment", "--strict-topology", "--immediate-topology=false", "--enable-capacity",
        "--capacity-ownerref-level=1",
    } <= set(provisioner["args"])  # fmt: skip
    fields = {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in provisioner["env"]}
    assert fields == {"NODE_NAME": "spec.nodeName", "NAMESPACE": "metadata.namespace", "POD_NAME": "metadata.name"}


def test_the_csi_driver_object_says_what_the_driver_does() -> None:
    driver = the(render(), "CSIDriver")
    assert driver["metadata"]["name"] == "sealed-local.csi"
    assert driver["spec"] == {
        "attachRequired": RPC.PUBLISH_UNPUBLISH_VOLUME in controller._CAPABILITIES,
        "podInfoOnMount": False,
        "storageCapacity": RPC.GET_CAPACITY in controller._CAPABILITIES,
        "fsGroupPolicy": "File",
        "volumeLifecycleModes": ["Persistent"],
    }
    # With it kubelet would leave the group to the driver.
    assert NODE_RPC.VOLUME_MOUNT_GROUP not in node._CAPABILITIES


@pytest.mark.parametrize("variant", ["defaults", "two pools", "everything the node can have"])
def test_the_driver_takes_the_parameters_of_every_class(variant: str) -> None:
    objects = render(VARIANTS[variant])
    classes = of_kind(objects, "StorageClass")
    assert classes
    for found in classes:
        class_parameters.parse(found.get("parameters", {}))
        assert found["volumeBindingMode"] == "WaitForFirstConsumer"
        assert found["provisioner"] == the(objects, "CSIDriver")["metadata"]["name"]


def test_there_is_a_plain_a_direct_and_a_sealed_class() -> None:
    classes = {found["metadata"]["name"]: found for found in of_kind(render(), "StorageClass")}
    parsed = {name: class_parameters.parse(found["parameters"]) for name, found in classes.items()}
    assert {name: (one.direct, one.profile.is_sealed) for name, one in parsed.items()} == {
        "local-plain": (False, False),
        "local-direct": (True, False),
        "local-sealed": (True, True),
    }
    assert not any("annotations" in found["metadata"] for found in classes.values()), "no class is the default unasked"


# Node pools


def test_each_node_pool_has_a_daemon_and_a_configuration_of_its_own(tmp_path: Path) -> None:
    nvme, hdd = started(render(TWO_POOLS), tmp_path)
    assert [pool.name for pool in nvme.settings.config.pools] == ["fast", "bulk"]
    assert [pool.vgs for pool in hdd.settings.config.pools] == [("sata",)]
    assert nvme.pod["nodeSelector"] == {"kubernetes.io/os": "linux", "disk": "nvme"}
    assert nvme.pod["tolerations"] == TWO_POOLS["nodePools"][0]["tolerations"]
    assert "tolerations" not in hdd.pod
    first, second = of_kind(render(TWO_POOLS), "DaemonSet")
    assert first["spec"]["selector"] != second["spec"]["selector"]


def test_a_node_never_gets_two_drivers() -> None:
    for daemon in of_kind(render(TWO_POOLS), "DaemonSet"):
        [rule] = pod_of(daemon)["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert rule["topologyKey"] == "kubernetes.io/hostname"
        for other in of_kind(render(TWO_POOLS), "DaemonSet"):
            labels = other["spec"]["template"]["metadata"]["labels"]
            assert rule["labelSelector"]["matchLabels"].items() <= labels.items()
        assert daemon["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0


def test_another_configuration_restarts_its_own_pool_alone() -> None:
    changed = json.loads(json.dumps(TWO_POOLS))
    changed["nodePools"][1]["config"]["pools"][0]["reserve"] = "1GiB"
    before, after = of_kind(render(TWO_POOLS), "DaemonSet"), of_kind(render(changed), "DaemonSet")
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]


# Least privilege


def rules(role: Object) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of everything that a role allows; a rule of any other shape is an error here."""
    allowed = set()
    for rule in role["rules"]:
        assert (
            {"apiGroups", "resources", "verbs"} <= rule.keys() <= {"apiGroups", "resources", "verbs", "resourceNames"}
        )
        triples = {(g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
        allowed |= triples
    return allowed


def grants(lines: dict[str, str]) -> set[tuple[str, str, str]]:
    places = [(key.rpartition("/"), verbs) for key, verbs in lines.items()]
    return {(group, resource, verb) for (group, _, resource), verbs in places for verb in verbs.split()}


def test_the_provisioner_may_do_what_it_needs_and_nothing_else() -> None:
    assert rules(the(render(), "ClusterRole")) == grants(
        {
            "persistentvolumes": "list watch create patch delete",
            "persistentvolumeclaims": "get list watch update",
            "storage.k8s.io/storageclasses": "list watch",
            "events": "create patch",
        }
    )
    assert rules(the(render(), "Role")) == grants(
        {"storage.k8s.io/csistoragecapacities": "list watch create update delete", "pods": "get"}
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_role_has_a_wildcard_or_reads_secrets(variant: str) -> None:
    roles = [found for found in render(VARIANTS[variant]) if found["kind"] in ("Role", "ClusterRole")]
    for triple in (triple for role in roles for triple in rules(role)):
        assert "*" not in triple
        assert triple[1] not in ("secrets", "pods/exec", "serviceaccounts/token", "clusterroles", "roles")


def test_roles_are_bound_to_the_node_account_alone() -> None:
    objects = render(VARIANTS["broker beside the nodes"])
    bindings = [*of_kind(objects, "RoleBinding"), *of_kind(objects, "ClusterRoleBinding")]
    assert [[subject["name"] for subject in binding["subjects"]] for binding in bindings] == [
        ["sl-sealed-local-node"]
    ] * 2
    assert {found["metadata"]["name"] for found in of_kind(objects, "ServiceAccount")} == {
        "sl-sealed-local-node", "sl-sealed-local-broker",
    }  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_who_uses_the_api_gets_a_token(variant: str) -> None:
    for pod in pods(render(VARIANTS[variant])):
        assert pod["automountServiceAccountToken"] is False
        tokens = {volume["name"] for volume in pod["volumes"] if "projected" in volume}
        holders = {
            entry["name"] for entry in pod["containers"] if tokens & {mount["name"] for mount in entry["volumeMounts"]}
        }
        users = {"provisioner", "cluster"} & {entry["name"] for entry in pod["containers"]}
        assert holders == users


def test_only_the_driver_is_privileged() -> None:
    for entry in pod_of(the(render(), "DaemonSet"))["containers"]:
        security = entry["securityContext"]
        # Root everywhere: only root may use the driver's socket.
        assert security["runAsUser"] == 0
        assert security.get("privileged", False) == (entry["name"] == "driver")
        if entry["name"] != "driver":
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_container_asks_for_what_it_needs(variant: str) -> None:
    for pod in pods(render(VARIANTS[variant])):
        for entry in [*pod.get("initContainers", []), *pod["containers"]]:
            assert entry["resources"]["requests"].keys() == {"cpu", "memory"}
            # A limit would kill the e2fsck of a large volume.
            assert entry["name"] != "driver" or "limits" not in entry["resources"]


def test_images_are_pinned_and_a_digest_wins() -> None:
    def images(values: Object) -> dict[str, str]:
        entries = (entry for pod in pods(render(values)) for entry in pod["containers"])
        return {entry["name"]: entry["image"] for entry in entries}

    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images({}).values())
    changed = images(VARIANTS["everything the node can have"])
    assert changed["driver"] == "localhost/sealed-local-node@sha256:" + "a" * 64
    assert changed["provisioner"].endswith("csi-provisioner:v6.5.0")


def test_the_network_of_the_node_plugin_is_its_metrics_page_and_the_api_server() -> None:
    [policy] = [found["spec"] for found in of_kind(render(VARIANTS["everything the node can have"]), "NetworkPolicy")]
    labels = the(render(), "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [
        {
            "ports": [{"port": "metrics", "protocol": "TCP"}],
            "from": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        }
    ]
    [egress] = policy["egress"]
    assert egress["to"] == [{"ipBlock": {"cidr": "10.0.0.10/32"}}]
    assert [port["port"] for port in egress["ports"]] == [443, 6443]
    # Without the API server's address, closing egress would cut the provisioner off.
    assert the(render(), "NetworkPolicy")["spec"]["policyTypes"] == ["Ingress"]
