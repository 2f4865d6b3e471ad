"""The Helm chart without a cluster: well-formed, checked by the API's own schemas, strict about its values."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from csi.node import config as node_config
from csi.node import parameters as class_parameters
from csi.node.lvm.layout import LayoutName
from csi.node.volume import Wipe
from tests.fakes.chart import (
    BROKERS,
    CHART,
    ROOT,
    VALUES,
    VARIANTS,
    Object,
    container,
    of_kind,
    pod_of,
    render,
    run_helm,
    started,
    the,
    validate,
)

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


# Well-formed


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_lint_finds_nothing(variant: str) -> None:
    done = run_helm(["lint", "--strict", str(CHART)], VARIANTS[variant])
    assert done.returncode == 0, done.stdout + done.stderr
    # Linting asks for an icon, as information; a driver without one is no worse.
    assert not re.search(r"\[(WARNING|ERROR)\]", done.stdout), done.stdout


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_every_object_is_what_the_api_knows(tmp_path: Path, version: str) -> None:
    """Strictly: an unknown field is refused. All variants in one file: the checker takes seconds to start."""
    objects = [found for variant in VARIANTS.values() for found in render(variant)]
    kinds = {"DaemonSet", "StatefulSet", "Deployment", "CronJob", "PodDisruptionBudget", "CSIDriver", "StorageClass"}
    assert kinds <= {found["kind"] for found in objects}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(objects))
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == ">=1.29.0-0", (
        "the oldest is checked, too"
    )
    done = validate(tmp_path / "all.yaml", version)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        ("CSIDriver", {"podInfoOnMonut": False}, "podInfoOnMonut"),
        ("CSIDriver", {"attachRequired": "no"}, "attachRequired"),
        ("DaemonSet", {"template": None}, "template"),
    ],
)
def test_the_check_against_the_api_notices_what_is_wrong(tmp_path: Path, kind: str, change: Object, text: str) -> None:
    wrong = the(render(), kind)
    wrong = {**wrong, "spec": {key: value for key, value in {**wrong["spec"], **change}.items() if value is not None}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    done = validate(tmp_path / "wrong.yaml")
    assert done.returncode != 0
    assert text in done.stdout + done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_has_its_own_name_and_its_namespace(variant: str) -> None:
    objects = render(VARIANTS[variant])
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))
    cluster = {"CSIDriver", "StorageClass", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    assert all(("namespace" in found["metadata"]) == (found["kind"] not in cluster) for found in objects)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_notes_name_what_was_installed(variant: str) -> None:
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
    for broker in of_kind(objects, "Deployment") if VARIANTS[variant] is BROKERS else []:
        assert f"exec deploy/{broker['metadata']['name']} -c broker -- cat " in notes
        assert "the Secret broker-keys" in notes
    for group in ("fast-0 fast-1", "bulk-0", "sata") if variant == "two pools" else ():
        assert group in notes


def test_everything_off_is_nothing() -> None:
    assert render(VARIANTS["everything off"]) == []


def test_the_chart_has_the_version_of_the_driver() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert version is not None
    assert chart["appVersion"] == version[1]
    image = container(pod_of(the(render(), "DaemonSet")), "driver")["image"]
    assert image == f"localhost/sealed-local-node:{version[1]}"


def test_the_plain_manifests_are_what_the_chart_renders(tmp_path: Path) -> None:
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


def on_server(postgresql: Object | None = None, **broker: object) -> Object:
    """Brokers on PostgreSQL, with something else in one place."""
    right = {"conninfoSecret": {"name": "register"}, "keysSecret": "keys", "to": [{"ipBlock": {"cidr": "10.0.0.5/32"}}]}
    return {"node": {"enabled": False}, "broker": {"enabled": True, "postgresql": right | (postgresql or {})} | broker}


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
    ({"broker": {"replicas": 0}}, "replicas"),
    ({"broker": {"postgresql": {"conninfo": "host=db password=secret"}}}, "conninfo"),
    ({"broker": {"backup": {"keep": 0}}}, "keep"),
    ({"cluster": {"settleSeconds": 0}}, "settleSeconds"),
    ({"cluster": {"releaseAfter": 5}}, "releaseAfter"),
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
    ({"broker": {"replicas": 3}}, "broker.replicas: several brokers share a register in PostgreSQL"),
    ({"broker": {"postgresql": {"keysSecret": "keys"}}}, "broker.postgresql.conninfoSecret.name: missing"),
    ({"broker": {"backup": {"schedule": "0 2 * * *"}}}, "broker.backup.schedule: only with broker.postgresql"),
    (on_server(backup={"schedule": "0 2 * * *"}), "broker.backup.existingClaim"),
    (on_server({"keysSecret": ""}), "broker.postgresql.keysSecret: name the Secret"),
    (on_server({"to": []}), "broker.postgresql.to: say where the database is"),
    (on_server(hosts=["broker.example.com"]), "broker.hosts: with broker.postgresql"),
]


@pytest.mark.parametrize(("values", "named"), WRONG_VALUES, ids=[named for _, named in WRONG_VALUES])
def test_a_wrong_value_is_refused_by_name(values: Object, named: str) -> None:
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
    assert set(allowed["lvmType"]["enum"]) == {str(layout) for layout in LayoutName}
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
def test_the_example_values_of_a_page_make_a_driver_that_starts(tmp_path: Path, page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    [example] = re.findall(r"^```yaml\n(nodePools:\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    values = yaml.safe_load(example)
    daemons = started(render(values), tmp_path)
    assert len(daemons) == len(values["nodePools"])
    assert "fast" in {pool.name for daemon in daemons for pool in daemon.settings.config.pools}


# The warning


def test_the_warning_names_the_classes_that_need_a_kata_guest_and_no_other() -> None:
    values: Object = {
        "runtimeClassWarning": {"enabled": True},
        "storageClasses": {
            "clear": {"enabled": True, "parameters": {"sealed": "none"}},
            "mine": {"enabled": True, "parameters": {"sealed": "xts"}},
            "off": {"enabled": False, "parameters": {"direct": "true"}},
        },
    }
    policy = the(render(values), "ValidatingAdmissionPolicy")
    (guarded,) = (entry["expression"] for entry in policy["spec"]["variables"] if entry["name"] == "guarded")
    (listed,) = re.findall(r" in (\[.*\])\)", guarded)
    assert json.loads(listed) == ["local-direct", "local-sealed", "mine"]


def test_the_warning_never_refuses_a_pod_and_is_off_where_it_was_not_asked_for() -> None:
    objects = render({"runtimeClassWarning": {"enabled": True}})
    policy, binding = the(objects, "ValidatingAdmissionPolicy"), the(objects, "ValidatingAdmissionPolicyBinding")
    assert policy["spec"]["failurePolicy"] == "Ignore"
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert binding["spec"]["validationActions"] == ["Warn", "Audit"]
    # Kubernetes 1.29 has no such kind.
    assert [found for found in render() if found["kind"].startswith("Validating")] == []


def test_the_warning_is_what_the_api_knows(tmp_path: Path) -> None:
    objects = render({"runtimeClassWarning": {"enabled": True}})
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(objects))
    done = validate(tmp_path / "all.yaml", "1.37")
    assert done.returncode == 0, done.stdout + done.stderr
