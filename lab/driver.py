"""The real driver process in the lab's node, driven over its socket as kubelet and the provisioner do."""

import copy
import itertools
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import yaml

from lab.node import Node, wait_until

_numbers = itertools.count(1)
MIB = 1024 * 1024
KUBELET = "/var/lib/kubelet"
REGISTRY = "/run/kata-containers/shared/direct-volumes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one CSI call answered."""

    code: str
    message: str
    response: dict[str, Any]
    seconds: float

    def ok(self) -> dict[str, Any]:
        """The response; fails with the driver's message when the call did."""
        assert self.code == "OK", f"{self.code}: {self.message}"
        return self.response


_ADDED_BY_KUBERNETES = {
    "storage.kubernetes.io/csiProvisionerIdentity": "1795550000000-8081-sealed-local.csi",
    "csi.storage.k8s.io/pod.name": "pod-1",
}
"""external-provisioner puts the first into every PV's attributes, kubelet adds the second."""


def mount_capability(fstype: str = "", mode: str = "SINGLE_NODE_WRITER", flags: Sequence[str] = ()) -> dict[str, Any]:
    """A filesystem volume capability as JSON."""
    return {"mount": {"fs_type": fstype, "mount_flags": list(flags)}, "access_mode": {"mode": mode}}


def block_capability(mode: str = "SINGLE_NODE_WRITER") -> dict[str, Any]:
    """A block volume capability as JSON."""
    return {"block": {}, "access_mode": {"mode": mode}}


class Driver:
    """`sealed-local node` as a process in the node. `module` may name a wrapper that ends it at a chosen moment; `options`
    are the interpreter's.
    """

    def __init__(
        self,
        node: Node,
        config: Mapping[str, Any],
        *,
        kubelet: str = KUBELET,
        options: Sequence[str] = (),
        log_level: str = "debug",
    ) -> None:
        self.node = node
        self._options = options
        self._log_level = log_level
        self.kubelet = kubelet
        self._name = f"driver{next(_numbers)}"
        self._folder = f"/run/{self._name}"
        self.socket = f"{self._folder}/csi.sock"
        self.log = f"{node.shared}/{self._name}.log"
        self.node.run(["mkdir", "-p", self._folder, kubelet])
        self.configure(config)
        self._pid = 0
        self._patience = 120.0

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the configuration file; the next start reads it."""
        whole = {"loopDevices": self.node.kind == "machine", **config}
        self.node.write(f"{self._folder}/node.yaml", yaml.safe_dump(whole).encode())

    def argv(self, module: str = "csi") -> list[str]:
        """The command line of the process."""
        return [
            sys.executable, *self._options, "-m", module, "node",
            "--endpoint", f"unix://{self.socket}", "--node-id", "lab-node", "--config", f"{self._folder}/node.yaml",
            "--kubelet-dir", self.kubelet, "--metrics-address", "", "--log-level", self._log_level,
        ]  # fmt: skip

    def start(self, module: str = "csi", env: Mapping[str, str] | None = None) -> None:
        """Start it and wait until Probe says ready."""
        self._pid = self.node.spawn(self.argv(module), self.log, env)
        self.node.call("lab.csi_calls:ready", socket=self.socket)

    def adopt(self, pid: int) -> None:
        """Take over a process that something else in the node has started with `argv`."""
        self._pid = pid

    @property
    def pid(self) -> int:
        """Process id in the node."""
        return self._pid

    def stop(self) -> int:
        """End it in order; returns its exit status."""
        self.node.kill(self._pid, signal.SIGTERM)
        status = self.node.wait(self._pid)
        self._forget()
        return status

    def kill(self) -> None:
        """kill -9."""
        self.node.kill(self._pid, signal.SIGKILL)
        self.died()

    def died(self) -> int:
        """Wait for a process that ends by itself; returns its status."""
        status = self.node.wait(self._pid)
        self._forget()
        return status

    def patient(self, seconds: float) -> Self:
        """The same driver as a caller sees it who waits so long for an answer."""
        other = copy.copy(self)
        other._patience = seconds
        return other

    def call(self, method: str, **request: Any) -> Answer:
        """One CSI call; fields by their names in the specification."""
        reply = self.node.call(
            "lab.csi_calls:call",
            call_timeout=self._patience + 60,
            socket=self.socket,
            method=method,
            request=request,
            timeout=self._patience,
        )
        assert not reply["details"], "CSI forbids status details"
        return _answer(reply)

    def many(self, method: str, requests: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Many calls at once."""
        replies = self.node.call(
            "lab.csi_calls:many",
            call_timeout=900,
            socket=self.socket,
            method=method,
            requests=[dict(request) for request in requests],
        )
        return [_answer(reply) for reply in replies]

    def create(self, name: str, size: int, capability: Mapping[str, Any], **parameters: str) -> Answer:
        """CreateVolume."""
        return self.call("CreateVolume", **create_request(name, size, capability, **parameters))

    def stage(self, volume: Mapping[str, Any], capability: Mapping[str, Any]) -> Answer:
        """NodeStageVolume at kubelet's path."""
        path = self.staging_path(volume["volume_id"])
        self.node.run(["mkdir", "-p", path])
        return self.call(
            "NodeStageVolume",
            volume_id=volume["volume_id"],
            staging_target_path=path,
            volume_capability=capability,
            volume_context=volume.get("volume_context", {}) | _ADDED_BY_KUBERNETES,
        )

    def publish(
        self, volume: Mapping[str, Any], capability: Mapping[str, Any], *, pod: str = "pod-1", readonly: bool = False
    ) -> Answer:
        """NodePublishVolume at kubelet's path for a pod."""
        target = self.target_path(volume["volume_id"], pod)
        self.node.run(["mkdir", "-p", target.rpartition("/")[0]])
        return self.call(
            "NodePublishVolume",
            volume_id=volume["volume_id"],
            staging_target_path=self.staging_path(volume["volume_id"]),
            target_path=target,
            volume_capability=capability,
            volume_context=volume.get("volume_context", {}) | _ADDED_BY_KUBERNETES,
            readonly=readonly,
        )

    def unpublish(self, volume_id: str, *, pod: str = "pod-1") -> Answer:
        """NodeUnpublishVolume."""
        return self.call("NodeUnpublishVolume", volume_id=volume_id, target_path=self.target_path(volume_id, pod))

    def unstage(self, volume_id: str) -> Answer:
        """NodeUnstageVolume."""
        return self.call("NodeUnstageVolume", volume_id=volume_id, staging_target_path=self.staging_path(volume_id))

    def delete(self, volume_id: str) -> Answer:
        """DeleteVolume."""
        return self.call("DeleteVolume", volume_id=volume_id)

    def deleted(self, volume_id: str) -> None:
        """DeleteVolume until it is done, as the provisioner repeats it while a wipe goes on: a slow disk takes its time."""

        def done() -> Answer | None:
            answer = self.delete(volume_id)
            return answer if answer.code not in ("ABORTED", "UNAVAILABLE") else None

        wait_until(f"{volume_id} is deleted", 300, done).ok()

    def staging_path(self, volume_id: str) -> str:
        """Where kubelet stages the volume."""
        return f"{self.kubelet}/plugins/kubernetes.io/csi/sealed-local.csi/{volume_id}/globalmount"

    def target_path(self, volume_id: str, pod: str = "pod-1") -> str:
        """Where kubelet wants the volume for a pod."""
        return f"{self.kubelet}/pods/{pod}/volumes/kubernetes.io~csi/{volume_id}/mount"

    def _forget(self) -> None:
        self.node.call("lab.csi_calls:forget", socket=self.socket)


def create_request(name: str, size: int, capability: Mapping[str, Any], **parameters: str) -> dict[str, Any]:
    """A CreateVolume request as JSON."""
    return {
        "name": name,
        "capacity_range": {"required_bytes": size},
        "volume_capabilities": [dict(capability)],
        "parameters": parameters,
    }


def _answer(reply: Mapping[str, Any]) -> Answer:
    return Answer(code=reply["code"], message=reply["message"], response=reply["response"], seconds=reply["seconds"])


def until_ok(call: Callable[[], Answer], what: str, seconds: float = 120) -> Answer:
    """Repeat a call as kubelet and the provisioner do, until it gets through; fails with what it said last."""
    last: list[Answer] = []

    def got_through() -> bool:
        last[:] = [call()]
        return last[0].code == "OK"

    try:
        wait_until(what, seconds, got_through)
    except AssertionError as late:
        raise AssertionError(f"{late}; it says {last[0].code}: {last[0].message}") from None
    return last[0]


def lvs(node: Node) -> list[str]:
    """Names of all logical volumes in the node."""
    return node.run(["lvs", "--noheadings", "-o", "lv_name"]).text.split()


def mounts_below(node: Node, folder: str = KUBELET) -> list[str]:
    """Mount points below a folder."""
    lines = node.read("/proc/self/mountinfo").decode().splitlines()
    return sorted(line.split(" ")[4] for line in lines if line.split(" ")[4].startswith(folder + "/"))
