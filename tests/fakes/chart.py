"""The Helm chart as helm renders it, for tests: variants of its values, and ways to find things in what comes out."""

import atexit
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from csi.node import settings as node_settings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/sealed-local"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
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
BROKERS: Object = {
    "node": {"enabled": False},
    "driver": {"createObject": False},
    **NO_CLASSES,
    "broker": {
        "enabled": True,
        "replicas": 3,
        "postgresql": {
            "conninfoSecret": {"name": "register", "key": "uri"},
            "keysSecret": "broker-keys",
            "collateralConfigMap": "broker-collateral",
            "to": [{"ipBlock": {"cidr": "10.0.0.5/32"}}],
        },
        "backup": {"schedule": "17 2 * * *", "existingClaim": "backups", "keep": 3},
    },
}
CLUSTER: Object = {
    "cluster": {"enabled": True, "releaseAfterSeconds": 86400, "podLabels": {"team": "storage"}},
    "networkPolicy": {
        "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        "apiServer": {"cidrs": ["10.0.0.10/32"]},
    },
}
VARIANTS: dict[str, Object] = {
    "defaults": {},
    "two pools": TWO_POOLS,
    "broker alone": BROKER,
    "brokers on PostgreSQL": BROKERS,
    "broker beside the nodes": {"broker": {"enabled": True, "besideNodePlugin": True}},
    "cluster helper": CLUSTER,
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


@cache
def _home() -> Path:
    """A folder for helm, its settings and the values of a run; gone when the tests are."""
    home = Path(tempfile.mkdtemp(prefix="helm-"))
    atexit.register(shutil.rmtree, home)
    done = subprocess.run([ROOT / "scripts/build-helm", home / "helm"], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    return home


def run_helm(command: list[str], values: Object) -> subprocess.CompletedProcess[str]:
    """Run helm with these values. It talks to no cluster."""
    home = _home()
    file = home / "values.yaml"
    file.write_text(json.dumps(values))
    # Without it helm takes the version of its own libraries; `install` has no such option and asks a cluster.
    version = [] if command[0] == "install" else ["--kube-version", "1.37.0"]
    argv = [home / "helm", *command, *version, "--namespace", "storage", "--values", file]
    places = {f"HELM_{kind}_HOME": str(home / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, env={"HOME": str(home), **places})


def render(values: Object | None = None) -> list[Object]:
    """The objects of release `sl` in namespace `storage`."""
    return _rendered(json.dumps(values or {}))


@cache
def _rendered(values: str) -> list[Object]:
    done = run_helm(["template", "sl", str(CHART)], json.loads(values))
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def validate(file: Path, version: str = "1.37") -> subprocess.CompletedProcess[str]:
    """Check objects against the API's schemas of a version of Kubernetes, strictly."""
    argv = [ROOT / "scripts/validate-manifests", version, file]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300)


# Reading what was rendered


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [found for found in objects if found["kind"] == kind]


def the(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The only one of a kind, or of a kind and name."""
    [found] = [found for found in of_kind(objects, kind) if name in (None, found["metadata"]["name"])]
    return found


def pod_of(workload: Object) -> Object:
    """What a DaemonSet, StatefulSet, Deployment or CronJob makes pods of."""
    spec = workload["spec"]
    return spec.get("jobTemplate", workload)["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(pod: Object, name: str) -> Object:
    """A container of a pod by its name, those that only prepare included."""
    [found] = [found for found in [*pod.get("initContainers", []), *pod["containers"]] if found["name"] == name]
    return found  # type: ignore[no-any-return]


def pods(objects: list[Object]) -> list[Object]:
    """The pods of everything that makes pods."""
    kinds = ("DaemonSet", "StatefulSet", "Deployment", "CronJob")
    return [pod_of(found) for kind in kinds for found in of_kind(objects, kind)]


def host_paths(pod: Object) -> dict[str, str]:
    """Name of each volume that is a path of the node, and the path."""
    return {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}


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
