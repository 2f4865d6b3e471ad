"""Objects that the tests make, and what they look at afterwards. Everything is in the namespace `default`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lab.cluster import store
from lab.cluster.cluster import GROUP, Cluster

PODS = "/api/v1/namespaces/default/pods"
CLAIMS = "/api/v1/namespaces/default/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
DRIVER = "sealed-local.csi"


def claim(
    name: str,
    size: str = "64Mi",
    *,
    storage_class: str = "local-plain",
    block: bool = False,
    modes: Sequence[str] = ("ReadWriteOnce",),
) -> dict[str, Any]:
    """A PersistentVolumeClaim."""
    return {"metadata": {"name": name}, "spec": claim_spec(size, storage_class, block=block, modes=modes)}


def claim_spec(
    size: str, storage_class: str, *, block: bool = False, modes: Sequence[str] = ("ReadWriteOnce",)
) -> dict[str, Any]:
    """What is asked for, as in a claim and in a template of one."""
    return {
        "accessModes": list(modes),
        "storageClassName": storage_class,
        "volumeMode": "Block" if block else "Filesystem",
        "resources": {"requests": {"storage": size}},
    }


def storage_class(name: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """A StorageClass of the driver, as the chart writes them."""
    return {
        "metadata": {"name": name},
        "provisioner": DRIVER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "parameters": dict(parameters),
    }


def of_claim(claim_name: str, *, read_only: bool = False) -> dict[str, Any]:
    """A pod's volume that is a claim."""
    return {"persistentVolumeClaim": {"claimName": claim_name, "readOnly": read_only}}


def pod(
    name: str,
    script: str,
    volume: Mapping[str, Any],
    *,
    mount: Mapping[str, Any] | None = None,
    block: bool = False,
    security: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A pod that runs a shell script once, with its volume at /data, or as the device /dev/volume."""
    return {"metadata": {"name": name}, "spec": pod_spec(script, volume, mount=mount, block=block, security=security)}


def pod_spec(
    script: str,
    volume: Mapping[str, Any] | None = None,
    *,
    mount: Mapping[str, Any] | None = None,
    block: bool = False,
    security: Mapping[str, Any] | None = None,
    restart: str = "Never",
) -> dict[str, Any]:
    """A pod's specification. What the script writes to /dev/termination-log is its message."""
    container: dict[str, Any] = {
        "name": "main",
        "image": store.TEST_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", script],
    }
    if block:
        container["volumeDevices"] = [{"name": "data", "devicePath": "/dev/volume"}]
    else:
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data", **(mount or {})}]
    return {
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": 1,
        "securityContext": dict(security or {}),
        "containers": [container],
        "volumes": [] if volume is None else [{"name": "data", **volume}],
    }


def create_claim(cluster: Cluster, wanted: Mapping[str, Any]) -> str:
    """Make a claim; returns its path."""
    cluster.create(CLAIMS, wanted)
    return f"{CLAIMS}/{wanted['metadata']['name']}"


def run(cluster: Cluster, wanted: Mapping[str, Any]) -> str:
    """Run a pod to its end and delete it; returns the message that its script left. Fails when the script did."""
    cluster.create(PODS, wanted)
    path = f"{PODS}/{wanted['metadata']['name']}"
    ended = cluster.wait(path, ["status", "phase"], "Succeeded", "Failed")
    message = message_of(ended)
    assert ended["status"]["phase"] == "Succeeded", message
    cluster.delete(path)
    return message


def message_of(ended: Mapping[str, Any]) -> str:
    """What the script of a pod that ended wrote to /dev/termination-log."""
    terminated = ended["status"]["containerStatuses"][0]["state"]["terminated"]
    return str(terminated.get("message", "")).strip()


def volume_of(cluster: Cluster, claim_path: str) -> str:
    """Name of the volume that a claim is bound to."""
    return str(cluster.wait(claim_path, ["status", "phase"], "Bound")["spec"]["volumeName"])


def extents(cluster: Cluster, volume: str) -> list[tuple[str, int, int]]:
    """Where a volume lies: disk, first byte, bytes."""
    options = ["--noheadings", "--units", "b", "--nosuffix", "--segments"]
    segments = cluster.node.run(["lvs", *options, "-o", "seg_pe_ranges,vg_extent_size", f"{GROUP}/{volume}"]).text
    disks = cluster.node.run(["pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pv_name,pe_start"]).text
    starts = {name: int(start) for name, start in (line.split() for line in disks.splitlines())}
    found = []
    for ranges, size in (line.split() for line in segments.splitlines()):
        disk, _, numbers = ranges.rpartition(":")
        first, last = (int(number) for number in numbers.split("-"))
        found.append((disk, starts[disk] + first * int(size), (last - first + 1) * int(size)))
    return found


def on_disk(cluster: Cluster, where: Sequence[tuple[str, int, int]], text: str) -> bool:
    """Whether a text lies anywhere in these parts of the disks, now and not when they were looked at last."""
    for disk in {disk for disk, _, _ in where}:
        cluster.node.run(["blockdev", "--flushbufs", disk])
    return any(text.encode() in cluster.node.read(disk, start, size) for disk, start, size in where)


def volumes(cluster: Cluster) -> list[str]:
    """Names of all logical volumes of the driver's group."""
    return cluster.node.run(["lvs", "--noheadings", "-o", "lv_name", GROUP]).text.split()
