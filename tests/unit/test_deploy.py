"""The Helm chart without a cluster: rendered by helm itself, checked by the API's schemas and the driver's own code."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from csi.broker import main as broker_main
from csi.node import config as node_config
from csi.node import parameters as class_parameters
from csi.node import settings as node_settings
from csi.node.rpc import controller, identity, node
from csi.node.rpc.proto import csi_pb2
from csi.node.volume import Layout, Wipe

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/sealed-local"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
Object = dict[str, Any]

NO_CLASSES: Object = {"storageClasses": dict.fromkeys(VALUES["storageClasses"])}
TWO_POOLS: Object = {
    "nodePools": [
        {
            "name": "nvme",
            "nodeSelector": {"disk": "nvme"},
            "tolerations": [{"key": "storage", "operator": "Exists", "effect": "NoSchedule"}],
            "config": {
                "pools": [
                    {"name": "fast", "vgs": ["fast-0", "fast-1"], "strategy": "spread", "reserve": "10%"},
                    {"name": "bulk", "vgs": ["bulk-0"], "devices": ["/dev/disk/by-id/nvme-EXAMPLE-1"]},
                ],
                "listConfig": {"vgs": {"include": ["data-.*"], "exclude": ["data-old"]}},
                "defaultPool": "fast",
            },
        },
        {"name": "hdd", "nodeSelector": {"disk": "hdd"}, "config": {"pools": [{"name": "bulk", "vgs": ["sata"]}]}},
    ],
    "storageClasses": {"local-plain": {"parameters": {"pool": "bulk", "lvmType": "striping", "stripes": "2"}}},
}
BROKER: Object = {
    "node": {"enabled": False},
    "driver": {"createObject": False},
    **NO_CLASSES,
    "broker": {
        "enabled": True,
        "hosts": ["broker.example.com", "10.0.2.2"],
        "policy": 'version = 1\nallocate = "never"\n',
        "masterKeySecret": "broker-master",
        "storage": {"storageClassName": "safe"},
        "from": [{"namespaceSelector": {"matchLabels": {"guests": "yes"}}}],
    },
}
VARIANTS: dict[str, Object] = {
    "defaults": {},
    "two pools": TWO_POOLS,
    "broker alone": BROKER,
    "broker beside the nodes": {"broker": {"enabled": True, "besideNodePlugin": True}},
    "everything off": {"node": {"enabled": False}, "driver": {"createObject": False}, **NO_CLASSES},
    "everything the node can have": {
        "driver": {
            "name": "local.example.com",
            "topologyKey": "example.com/node",
            "maxVolumes": 1000000,
            "logLevel": "debug",
            "hostPrograms": True,
        },
        "kubeletDir": "/data/kubelet",
        "node": {
            "privilegedSidecars": True,
            "livenessprobe": {"enabled": False},
            "maxUnavailable": "10%",
            "podLabels": {"team": "storage"},
            "podAnnotations": {"note": "hello"},
        },
        "nodePools": [{"name": "only", "config": {"udev": True, "loopDevices": True}}],
        "networkPolicy": {
            "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
            "apiServer": {"cidrs": ["10.0.0.10/32"]},
        },
        "imagePullSecrets": [{"name": "mine"}],
        "images": {"node": {"digest": "sha256:" + "a" * 64}, "provisioner": {"tag": "v6.5.0"}},
        "storageClasses": {
            "local-plain": {"default": True, "mountOptions": ["noatime"]},
            "kept": {"enabled": True, "reclaimPolicy": "Retain", "parameters": {"vgName": "vg0", "wipe": "none"}},
        },
    },
}


# helm and the checker, each built once, in the cache


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("helm") / "helm"
    done = subprocess.run([ROOT / "scripts/build-helm", program], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    return program


Render = Callable[..., list[Object]]


@pytest.fixture(scope="session")
def run_helm(helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    home = tmp_path_factory.mktemp("helm-home")

    def run(command: list[str], values: Object) -> subprocess.CompletedProcess[str]:
        file = home / "values.yaml"
        file.write_text(json.dumps(values))
        # Without it helm takes the version of its own libraries; `install` has no such option and asks a cluster.
        version = [] if command[0] == "install" else ["--kube-version", "1.37.0"]
        argv = [helm, *command, *version, "--namespace", "storage", "--values", file]
        places = {f"HELM_{kind}_HOME": str(home / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, env={"HOME": str(home), **places})

    return run


@pytest.fixture(scope="session")
def render(run_helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    known: dict[str, list[Object]] = {}

    def rendered(values: Object | None = None) -> list[Object]:
        key = json.dumps(values or {})
        if key not in known:
            done = run_helm(["template", "sl", str(CHART)], values or {})
            assert done.returncode == 0, done.stderr
            known[key] = [document for document in yaml.safe_load_all(done.stdout) if document]
        return known[key]

    return rendered


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "scripts/validate-manifests", file], capture_output=True, text=True, timeout=300)


# Reading what was rendered


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def the(objects: list[Object], kind: str, name: str | None = None) -> Object:
    [found] = [found for found in of_kind(objects, kind) if name in (None, found["metadata"]["name"])]
    return found


def pod_of(workload: Object) -> Object:
    return workload["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(pod: Object, name: str) -> Object:
    [found] = [found for found in [*pod.get("initContainers", []), *pod["containers"]] if found["name"] == name]
    return found  # type: ignore[no-any-return]


def pods(objects: list[Object]) -> list[Object]:
    return [pod_of(found) for kind in ("DaemonSet", "StatefulSet") for found in of_kind(objects, kind)]


def host_paths(pod: Object) -> dict[str, str]:
    """Name of each volume that is a path of the node, and the path."""
    return {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}


# Well-formed


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_lint_finds_nothing(run_helm: Callable[..., subprocess.CompletedProcess[str]], variant: str) -> None:
    done = run_helm(["lint", "--strict", str(CHART)], VARIANTS[variant])
    assert done.returncode == 0, done.stdout + done.stderr
    # Linting asks for an icon, as information; a driver without one is no worse.
    assert not re.search(r"\[(WARNING|ERROR)\]", done.stdout), done.stdout


def test_every_object_is_what_the_api_knows(render: Render, tmp_path: Path) -> None:
    """Strictly: an unknown field is refused. All variants in one file: the checker takes seconds to start."""
    objects = [found for variant in VARIANTS.values() for found in render(variant)]
    assert {"DaemonSet", "StatefulSet", "CSIDriver", "StorageClass", "NetworkPolicy"} <= {
        found["kind"] for found in objects
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(objects))
    done = validate(tmp_path / "all.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        ("CSIDriver", {"podInfoOnMonut": False}, "podInfoOnMonut"),
        ("CSIDriver", {"attachRequired": "no"}, "attachRequired"),
        ("DaemonSet", {"template": None}, "template"),
    ],
)
def test_the_check_against_the_api_notices_what_is_wrong(
    render: Render, tmp_path: Path, kind: str, change: Object, text: str
) -> None:
    wrong = the(render(), kind)
    wrong = {**wrong, "spec": {key: value for key, value in {**wrong["spec"], **change}.items() if value is not None}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    done = validate(tmp_path / "wrong.yaml")
    assert done.returncode != 0
    assert text in done.stdout + done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_has_its_own_name_and_its_namespace(render: Render, variant: str) -> None:
    objects = render(VARIANTS[variant])
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))
    cluster = {"CSIDriver", "StorageClass", "ClusterRole", "ClusterRoleBinding"}
    assert all(("namespace" in found["metadata"]) == (found["kind"] not in cluster) for found in objects)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_notes_name_what_was_installed(
    run_helm: Callable[..., subprocess.CompletedProcess[str]], render: Render, variant: str
) -> None:
    done = run_helm(["install", "sl", str(CHART), "--dry-run=client"], VARIANTS[variant])
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("\nNOTES:\n")[2]
    assert 'The development TEE "sample" is the only one' in notes
    objects = render(VARIANTS[variant])
    assert ("pod-security.kubernetes.io/enforce=privileged" in notes) == bool(of_kind(objects, "DaemonSet"))
    for broker in of_kind(objects, "StatefulSet"):
        assert (
            f"exec {broker['metadata']['name']}-0 -c broker -- cat {container(pod_of(broker), 'broker')['args'][1]}/"
            in notes
        )
    for group in ("fast-0 fast-1", "bulk-0", "sata") if variant == "two pools" else ():
        assert group in notes


def test_everything_off_is_nothing(render: Render) -> None:
    assert render(VARIANTS["everything off"]) == []


def test_the_chart_has_the_version_of_the_driver(render: Render) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert version is not None
    assert chart["appVersion"] == version[1]
    image = container(pod_of(the(render(), "DaemonSet")), "driver")["image"]
    assert image == f"localhost/sealed-local-node:{version[1]}"


def test_the_plain_manifests_are_what_the_chart_renders(helm: Path, tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "scripts/render-manifests", tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    committed = {path.name: path.read_text() for path in (ROOT / "deploy/manifests").iterdir()}
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert fresh.keys() == committed.keys() == {"sealed-local.yaml", "broker.yaml"}
    assert fresh == committed, "run scripts/render-manifests"


@pytest.mark.parametrize(("name", "level"), [("sealed-local", "privileged"), ("broker", "restricted")])
def test_the_plain_manifests_bring_a_namespace_with_the_pod_security_level(name: str, level: str) -> None:
    file = ROOT / f"deploy/manifests/{name}.yaml"
    namespace, *objects = [document for document in yaml.safe_load_all(file.read_text()) if document]
    assert namespace["kind"] == "Namespace"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == level
    assert {found["metadata"].get("namespace", "sealed-local") for found in objects} == {namespace["metadata"]["name"]}
    done = validate(file)
    assert done.returncode == 0, done.stdout + done.stderr


# Values


WRONG_VALUES: list[tuple[Object, str]] = [
    ({"nodePool": []}, "nodePool"),
    ({"driver": {"nmae": "x.csi"}}, "nmae"),
    ({"driver": {"name": "Sealed_Local"}}, "driver"),
    ({"driver": {"logLevel": "verbose"}}, "logLevel"),
    ({"driver": {"maxVolumes": "many"}}, "maxVolumes"),
    ({"kubeletDir": "var/lib/kubelet"}, "kubeletDir"),
    ({"images": {"node": {"digest": "sha256:12"}}}, "digest"),
    ({"images": {"resizer": {"repository": "x"}}}, "resizer"),
    ({"node": {"resources": {"driver": {"request": {}}}}}, "request"),
    ({"nodePools": [{"name": "a", "config": {"pool": []}}]}, "config"),
    ({"nodePools": [{"name": "a", "config": {"pools": [{"name": "x"}]}}]}, "vgs"),
    ({"nodePools": [{"name": "a", "config": {"pools": [{"name": "x", "vgs": ["v"], "strategy": "any"}]}}]}, "strategy"),
    ({"nodePools": [{"name": "a", "config": {"pools": [{"name": "x", "vgs": ["v"], "devices": ["sda"]}]}}]}, "devices"),
    ({"nodePools": [{"name": "a"}]}, "config"),
    ({"storageClasses": {"local-plain": {"parameters": {"lvmtyp": "linear"}}}}, "lvmtyp"),
    ({"storageClasses": {"local-direct": {"parameters": {"direct": True}}}}, "direct"),
    ({"storageClasses": {"local-sealed": {"parameters": {"sealed": "xts-hmac"}}}}, "sealed"),
    ({"storageClasses": {"local-plain": {"volumeBindingMode": "Immediate"}}}, "volumeBindingMode"),
    ({"storageClasses": {"x": {"enabled": True, "parameters": {"pool": "local", "vgName": "v"}}}}, "parameters"),
    ({"networkPolicy": {"apiServer": {"cidrs": ["everywhere"]}}}, "cidrs"),
    ({"broker": {"replicas": 3}}, "replicas"),
    # What the schema can't see.
    ({"nodePools": []}, "nodePools: is empty"),
    ({"nodePools": [{"name": "a", "config": {}}, {"name": "b", "config": {}}]}, "nodePools[0].nodeSelector"),
    (
        {"nodePools": [{"name": "a", "nodeSelector": {"x": n}, "config": {}} for n in ("1", "2")]},
        "two node pools are called",
    ),
    (
        {"storageClasses": {"local-plain": {"parameters": {"pool": "fsat"}}}},
        'no node pool\'s config has a pool "fsat"; there are: local',
    ),
    ({"broker": {"enabled": True}}, "the node plugin's machines must never get them"),
]


@pytest.mark.parametrize(("values", "named"), WRONG_VALUES, ids=[named for _, named in WRONG_VALUES])
def test_a_wrong_value_is_refused_by_name(
    run_helm: Callable[..., subprocess.CompletedProcess[str]], values: Object, named: str
) -> None:
    done = run_helm(["template", "sl", str(CHART)], values)
    assert done.returncode != 0
    assert named in done.stderr, done.stderr


def resolved(schema: Object) -> Object:
    reference = schema.get("$ref")
    return SCHEMA["$defs"][reference.rpartition("/")[2]] if reference else schema


def schemas(schema: Object, place: str = "values") -> Iterator[tuple[str, Object]]:
    """Every schema inside a schema, with its place."""
    schema = resolved(schema)
    yield place, schema
    inner = [*schema.get("properties", {}).items(), ("[]", schema.get("items"))]
    inner.append(("*", schema.get("additionalProperties")))
    for key, child in inner:
        if isinstance(child, dict):
            yield from schemas(child, f"{place}.{key}")


def test_the_schema_refuses_unknown_keys_wherever_keys_are_the_charts() -> None:
    # Selectors are checked by the API server; what a parent chart shares is not ours.
    foreign = re.compile(r"\.(podSelector|namespaceSelector|ipBlock|global)$")
    open_ones = [
        place
        for place, schema in schemas(SCHEMA)
        if schema.get("type") == "object" and "additionalProperties" not in schema and not foreign.search(place)
    ]
    assert not open_ones


def test_every_default_is_in_the_schema_and_every_entry_of_the_schema_has_a_default() -> None:
    def compare(values: Object, schema: Object, place: str) -> None:
        known = resolved(schema).get("properties", {})
        if not known or place.endswith(".resources"):
            return
        assert values.keys() == known.keys() - {"global"}, place
        for key, value in values.items():
            if isinstance(value, dict) and not place.endswith((".resources", ".images")):
                compare(value, known[key], f"{place}.{key}")

    compare(VALUES, SCHEMA, "values")


def test_the_schema_knows_the_drivers_class_parameters() -> None:
    allowed = SCHEMA["$defs"]["parameters"]["properties"]
    assert allowed.keys() == {*class_parameters._KNOWN, class_parameters._FSTYPE_KEY}
    assert set(allowed["lvmType"]["enum"]) == {str(layout) for layout in Layout}
    assert set(allowed["wipe"]["enum"]) == {str(wipe) for wipe in Wipe}


def test_the_schema_knows_the_drivers_configuration_file() -> None:
    def keys(struct: type[msgspec.Struct]) -> set[str]:
        return {field.encode_name for field in msgspec.structs.fields(struct)}

    config, pool = SCHEMA["$defs"]["config"]["properties"], SCHEMA["$defs"]["pool"]["properties"]
    assert config.keys() == keys(node_config._File)
    assert pool.keys() == keys(node_config._Pool)
    assert config["listConfig"]["properties"].keys() == keys(node_config._ListConfig)
    assert config["listConfig"]["properties"]["vgs"]["properties"].keys() == keys(node_config._Names)
    assert set(pool["strategy"]["enum"]) == {str(strategy) for strategy in node_config.Strategy}


# The driver's container


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What the driver would run with in a rendered pod."""

    pod: Object
    settings: node_settings.Settings


def started(objects: list[Object], tmp_path: Path) -> list[Started]:
    """Each DaemonSet's command line and configuration, read by the driver's own code."""
    found = []
    for daemon in of_kind(objects, "DaemonSet"):
        pod = pod_of(daemon)
        [volume] = [volume for volume in pod["volumes"] if volume["name"] == "config"]
        file = tmp_path / volume["configMap"]["name"]
        file.write_text(the(objects, "ConfigMap", volume["configMap"]["name"])["data"]["node.yaml"])
        arguments = [word.replace("$(NODE_NAME)", "worker-1") for word in container(pod, "driver")["args"]]
        arguments = [word.replace("/etc/sealed-local/node.yaml", str(file)) for word in arguments]
        assert f"--config={file}" in arguments
        found.append(Started(pod=pod, settings=node_settings.load(arguments, {})))
    return found


@pytest.mark.parametrize("variant", ["defaults", "two pools", "everything the node can have"])
def test_the_driver_takes_the_command_line_and_the_configuration(render: Render, tmp_path: Path, variant: str) -> None:
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


def test_the_default_configuration_takes_no_disk(render: Render, tmp_path: Path) -> None:
    [daemon] = started(render(), tmp_path)
    assert [pool.devices for pool in daemon.settings.config.pools] == [()]
    assert daemon.settings.config.include == ()


@pytest.mark.parametrize("variant", ["defaults", "two pools", "everything the node can have"])
def test_the_drivers_paths_are_mounted_where_it_looks(render: Render, tmp_path: Path, variant: str) -> None:
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


def test_every_path_of_the_node_is_documented_and_every_documented_one_is_mounted(render: Render) -> None:
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


def test_running_calls_get_their_time_at_the_end(render: Render) -> None:
    assert pod_of(the(render(), "DaemonSet"))["terminationGracePeriodSeconds"] > 60


@pytest.mark.parametrize("sidecar", [True, False])
def test_a_driver_that_hangs_is_noticed(render: Render, sidecar: bool) -> None:
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


def test_the_pod_has_the_sidecars_of_the_drivers_capabilities_and_no_other(render: Render) -> None:
    offered = controller._CAPABILITIES
    wanted = {"driver", "registrar", "livenessprobe"}
    wanted |= {"provisioner"} if RPC.CREATE_DELETE_VOLUME in offered else set()
    wanted |= {"resizer"} if RPC.EXPAND_VOLUME in offered else set()
    wanted |= {"snapshotter"} if RPC.CREATE_DELETE_SNAPSHOT in offered else set()
    assert {entry["name"] for entry in pod_of(the(render(), "DaemonSet"))["containers"]} == wanted
    expands = NODE_RPC.EXPAND_VOLUME in node._CAPABILITIES or RPC.EXPAND_VOLUME in offered
    classes = of_kind(render(), "StorageClass")
    assert {found.get("allowVolumeExpansion", False) for found in classes} == {expands}


def test_the_provisioner_works_for_its_own_node_and_reports_room(render: Render) -> None:
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


def test_the_csi_driver_object_says_what_the_driver_does(render: Render) -> None:
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
def test_the_driver_takes_the_parameters_of_every_class(render: Render, variant: str) -> None:
    objects = render(VARIANTS[variant])
    classes = of_kind(objects, "StorageClass")
    assert classes
    for found in classes:
        class_parameters.parse(found.get("parameters", {}))
        assert found["volumeBindingMode"] == "WaitForFirstConsumer"
        assert found["provisioner"] == the(objects, "CSIDriver")["metadata"]["name"]


def test_there_is_a_plain_a_direct_and_a_sealed_class(render: Render) -> None:
    classes = {found["metadata"]["name"]: found for found in of_kind(render(), "StorageClass")}
    parsed = {name: class_parameters.parse(found["parameters"]) for name, found in classes.items()}
    assert {name: (one.direct, one.profile.is_sealed) for name, one in parsed.items()} == {
        "local-plain": (False, False),
        "local-direct": (True, False),
        "local-sealed": (True, True),
    }
    assert not any("annotations" in found["metadata"] for found in classes.values()), "no class is the default unasked"


# Node pools


def test_each_node_pool_has_a_daemon_and_a_configuration_of_its_own(render: Render, tmp_path: Path) -> None:
    nvme, hdd = started(render(TWO_POOLS), tmp_path)
    assert [pool.name for pool in nvme.settings.config.pools] == ["fast", "bulk"]
    assert [pool.vgs for pool in hdd.settings.config.pools] == [("sata",)]
    assert nvme.pod["nodeSelector"] == {"kubernetes.io/os": "linux", "disk": "nvme"}
    assert nvme.pod["tolerations"] == TWO_POOLS["nodePools"][0]["tolerations"]
    assert "tolerations" not in hdd.pod
    first, second = of_kind(render(TWO_POOLS), "DaemonSet")
    assert first["spec"]["selector"] != second["spec"]["selector"]


def test_a_node_never_gets_two_drivers(render: Render) -> None:
    for daemon in of_kind(render(TWO_POOLS), "DaemonSet"):
        [rule] = pod_of(daemon)["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert rule["topologyKey"] == "kubernetes.io/hostname"
        for other in of_kind(render(TWO_POOLS), "DaemonSet"):
            labels = other["spec"]["template"]["metadata"]["labels"]
            assert rule["labelSelector"]["matchLabels"].items() <= labels.items()
        assert daemon["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0


def test_another_configuration_restarts_its_own_pool_alone(render: Render) -> None:
    changed = json.loads(json.dumps(TWO_POOLS))
    changed["nodePools"][1]["config"]["pools"][0]["reserve"] = "1GiB"
    before, after = of_kind(render(TWO_POOLS), "DaemonSet"), of_kind(render(changed), "DaemonSet")
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]


# Least privilege


def rules(role: Object) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of everything that a role allows; a rule of any other shape is an error here."""
    allowed = set()
    for rule in role["rules"]:
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        triples = {(g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
        allowed |= triples
    return allowed


def grants(lines: dict[str, str]) -> set[tuple[str, str, str]]:
    places = [(key.rpartition("/"), verbs) for key, verbs in lines.items()]
    return {(group, resource, verb) for (group, _, resource), verbs in places for verb in verbs.split()}


def test_the_provisioner_may_do_what_it_needs_and_nothing_else(render: Render) -> None:
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
def test_no_role_has_a_wildcard_or_reads_secrets(render: Render, variant: str) -> None:
    roles = [found for found in render(VARIANTS[variant]) if found["kind"] in ("Role", "ClusterRole")]
    for triple in (triple for role in roles for triple in rules(role)):
        assert "*" not in triple
        assert triple[1] not in ("secrets", "pods/exec", "serviceaccounts/token", "clusterroles", "roles")


def test_roles_are_bound_to_the_node_account_alone(render: Render) -> None:
    objects = render(VARIANTS["broker beside the nodes"])
    bindings = [*of_kind(objects, "RoleBinding"), *of_kind(objects, "ClusterRoleBinding")]
    assert [[subject["name"] for subject in binding["subjects"]] for binding in bindings] == [
        ["sl-sealed-local-node"]
    ] * 2
    assert {found["metadata"]["name"] for found in of_kind(objects, "ServiceAccount")} == {
        "sl-sealed-local-node", "sl-sealed-local-broker",
    }  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_provisioner_gets_a_token(render: Render, variant: str) -> None:
    for pod in pods(render(VARIANTS[variant])):
        assert pod["automountServiceAccountToken"] is False
        tokens = {volume["name"] for volume in pod["volumes"] if "projected" in volume}
        holders = {
            entry["name"] for entry in pod["containers"] if tokens & {mount["name"] for mount in entry["volumeMounts"]}
        }
        assert holders == ({"provisioner"} if tokens else set())


def test_only_the_driver_is_privileged(render: Render) -> None:
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
def test_every_container_asks_for_what_it_needs(render: Render, variant: str) -> None:
    for pod in pods(render(VARIANTS[variant])):
        for entry in [*pod.get("initContainers", []), *pod["containers"]]:
            assert entry["resources"]["requests"].keys() == {"cpu", "memory"}
            # A limit would kill the e2fsck of a large volume.
            assert entry["name"] != "driver" or "limits" not in entry["resources"]


def test_images_are_pinned_and_a_digest_wins(render: Render) -> None:
    def images(values: Object) -> dict[str, str]:
        entries = (entry for pod in pods(render(values)) for entry in pod["containers"])
        return {entry["name"]: entry["image"] for entry in entries}

    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images({}).values())
    changed = images(VARIANTS["everything the node can have"])
    assert changed["driver"] == "localhost/sealed-local-node@sha256:" + "a" * 64
    assert changed["provisioner"].endswith("csi-provisioner:v6.5.0")


def test_the_network_of_the_node_plugin_is_its_metrics_page_and_the_api_server(render: Render) -> None:
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


# The broker


def test_the_broker_takes_its_command_lines(render: Render) -> None:
    pod = pod_of(the(render(BROKER), "StatefulSet"))
    parser = broker_main.parser()
    made = parser.parse_args(container(pod, "init")["args"])
    served = parser.parse_args(container(pod, "broker")["args"])
    assert made.positional_dir == served.positional_dir
    service = the(render(BROKER), "Service")
    assert made.host == [
        service["metadata"]["name"], f"{service['metadata']['name']}.storage.svc", "broker.example.com", "10.0.2.2",
    ]  # fmt: skip
    [port] = container(pod, "broker")["ports"]
    assert served.listen == f"0.0.0.0:{port['containerPort']}"
    # Not the volume's root, whose mode kubelet changes.
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container(pod, "broker")["volumeMounts"]}
    assert served.positional_dir.parent == mounts["data"]


def test_the_broker_is_one_process_whose_volume_outlives_the_release(render: Render) -> None:
    spec = the(render(BROKER), "StatefulSet")["spec"]
    assert spec["replicas"] == 1
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert [claim["spec"]["storageClassName"] for claim in spec["volumeClaimTemplates"]] == ["safe"]
    existing = {**BROKER, "broker": {"enabled": True, "storage": {"existingClaim": "mine"}}}
    spec = the(render(existing), "StatefulSet")["spec"]
    assert "volumeClaimTemplates" not in spec
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "mine"}} in spec["template"]["spec"]["volumes"]


def test_the_broker_gets_its_policy_and_its_master_key(render: Render) -> None:
    pod = pod_of(the(render(BROKER), "StatefulSet"))
    assert the(render(BROKER), "ConfigMap")["data"]["policy.toml"] == BROKER["broker"]["policy"]
    directory = container(pod, "broker")["args"][1]
    assert container(pod, "policy")["command"] == [
        "install", "--mode=0644", "/etc/sealed-local/policy.toml", f"{directory}/policy.toml",
    ]  # fmt: skip
    assert [entry["name"] for entry in pod["initContainers"]] == ["init", "policy"], (
        "init keeps a policy, so it is first"
    )
    for name in ("init", "broker"):
        [variable] = container(pod, name)["env"]
        assert variable["name"] == "SEALED_LOCAL_BROKER_MASTER_KEY"
        assert variable["valueFrom"] == {"secretKeyRef": {"name": "broker-master", "key": "master-key"}}
    # Without a policy of the chart's the operator's own file stays.
    unset = {**BROKER, "broker": {"enabled": True}}
    assert [entry["name"] for entry in pod_of(the(render(unset), "StatefulSet"))["initContainers"]] == ["init"]
    assert not of_kind(render(unset), "ConfigMap")


def test_the_broker_fits_a_restricted_namespace_and_connects_to_nobody(render: Render) -> None:
    pod = pod_of(the(render(BROKER), "StatefulSet"))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for entry in [*pod["initContainers"], *pod["containers"]]:
        assert entry["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not host_paths(pod)
    policy = the(render(BROKER), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert policy["ingress"] == [{"ports": [{"port": "https", "protocol": "TCP"}], "from": BROKER["broker"]["from"]}]


# The page


def values_in(page: str) -> set[str]:
    """What a page says can be set: options of helm in its examples, and first columns of tables headed `value`."""
    found = set(re.findall(r"--set(?:-json|-file)? '?([\w.\[\]-]+)=", page))
    for table in re.findall(r"^\| value \|.*\n((?:\|.*\n)+)", page, re.MULTILINE):
        found |= set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))
    return found


def is_a_value(name: str) -> bool:
    schema: Any = SCHEMA
    for key in re.sub(r"\[\d+\]", ".[]", name).split("."):
        schema = resolved(schema)
        schema = (
            schema.get("items")
            if key == "[]"
            else schema.get("properties", {key: schema.get("additionalProperties")}).get(key)
        )
        if not isinstance(schema, dict):
            return False
    return True


@pytest.mark.parametrize("page", ["install", "quick-start"])
def test_a_page_names_values_that_there_are(page: str) -> None:
    named = values_in((ROOT / f"docs/{page}.md").read_text())
    assert "images.node.repository" in named
    assert not [name for name in sorted(named) if not is_a_value(name)]


def test_a_value_that_there_is_not_is_noticed() -> None:
    page = "| value | default |\n|---|---|\n| `node.maxUnavailable` | 1 |\n\n`--set broker.hosts[0]=x --set a-b.c=1`\n"
    assert values_in(page) == {"node.maxUnavailable", "broker.hosts[0]", "a-b.c"}
    assert is_a_value("node.maxUnavailable")
    assert is_a_value("broker.hosts[0]")
    assert is_a_value("storageClasses.any-name.enabled")
    assert not any(map(is_a_value, ("node.maxUnavailabel", "broker.hosts.name", "storageClasses.any-name.on", "a-b.c")))


@pytest.mark.parametrize("page", ["install", "quick-start"])
def test_the_example_values_of_a_page_make_a_driver_that_starts(render: Render, tmp_path: Path, page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    [example] = re.findall(r"^```yaml\n(nodePools:\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    values = yaml.safe_load(example)
    daemons = started(render(values), tmp_path)
    assert len(daemons) == len(values["nodePools"])
    assert "fast" in {pool.name for daemon in daemons for pool in daemon.settings.config.pools}
