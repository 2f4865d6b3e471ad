"""A Kubernetes of one node inside the lab's User-mode Linux: control plane, kubelet, containerd, and the chart by helm.

Everything runs in that one kernel; nothing leaves it. Disks outlive `crash` and `boot`, as a node's do.
"""

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lab.cluster import documented, parts, pki, store, users
from lab.cluster.programs import Programs, link
from lab.node import REPOSITORY, RemoteError, Result
from lab.uml import UmlNode

_GIB = 1024**3
_VOLUME_DISKS = (2 * _GIB, 2 * _GIB)
_STATE_BYTES = 2 * _GIB
NAMESPACE = "sealed-local"
GROUP = "sealed-local"
"""Volume group that the chart's default configuration names."""
_BOOT_SECONDS = 600
_PAGE = REPOSITORY / "docs/install.md"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Cluster:
    """One throw-away cluster."""

    def __init__(self, programs: Programs, containers: Path) -> None:
        self.node = UmlNode((*_VOLUME_DISKS, 0, _STATE_BYTES, _STATE_BYTES))
        shared = self.node.shared
        self._layout = parts.Layout(programs=shared / "bin", keys=shared / "keys", files=shared / "files")
        self.keys = str(self._layout.keys)
        self.admin = self._layout.kubeconfig(users.ADMIN)
        _, _, image, *state = self.node.images
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", containers, image], check=True)
        for disk in state:
            store.format_disk(disk, _STATE_BYTES)
        link(programs, self._layout.programs)
        addresses = (parts.ADDRESS, parts.API_SERVICE, "127.0.0.1")
        pki.write(self._layout.keys, node=parts.NODE, addresses=addresses, users=parts.USERS, server=parts.SERVER)
        parts.write_files(self._layout)
        self._pids: dict[str, int] = {}
        self._argv = {
            "etcd": parts.etcd(),
            "containerd": parts.containerd(self._layout),
            "kube-apiserver": parts.apiserver(self._layout),
            "kube-controller-manager": parts.controllers(self._layout),
            "kube-scheduler": parts.scheduler(self._layout),
            "kubelet": parts.kubelet(self._layout),
        }

    def boot(self) -> None:
        """Switch the node on and start every part; returns when the node is Ready."""
        self.node.boot()
        *volumes, containers, state, kubelet = self.node.disks
        self._call("node_side:prepare", state=state, kubelet=kubelet)
        self._call("node_side:mount_containers", disk=containers)
        if self.node.run(["vgs", GROUP], check=False).rc != 0:
            self.node.run(["vgcreate", "-q", GROUP, *volumes])
        for part in ("etcd", "containerd", "kube-apiserver"):
            self.start(part)
        self.wait_ready()
        for part in ("kube-controller-manager", "kube-scheduler", "kubelet"):
            self.start(part)
        self.wait(f"/api/v1/nodes/{parts.NODE}", ["status", "conditions", {"type": "Ready"}, "status"], "True")
        # No pod is admitted before.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.wait(account, ["metadata", "name"], "default")

    def wait_ready(self) -> None:
        """Wait until the API server answers."""
        self._call("api:wait_ready", keys=self.keys, seconds=_BOOT_SECONDS)

    def crash(self) -> None:
        """Cut the power; `boot` switches it on again."""
        self.node.crash()
        self._pids.clear()

    def close(self) -> None:
        """End everything at once: nothing of it is needed any more."""
        self.node.crash()
        self.node.close()

    def start(self, part: str) -> None:
        """Start a part of the cluster."""
        self._pids[part] = self.node.spawn(self._argv[part], self.log(part))

    def kill(self, part: str, number: int = signal.SIGKILL) -> None:
        """End a part of the cluster."""
        pid = self._pids.pop(part)
        self.node.kill(pid, number)
        self.node.wait(pid, 120)

    def log(self, part: str) -> str:
        """Path of a part's log, inside and outside."""
        return f"{self.node.shared}/{part}.log"

    def shell(self, command: str) -> Result:
        """A line of shell in the checkout, as the cluster's administrator with kubectl and helm at hand."""
        env = {"KUBECONFIG": self.admin, "PATH": f"{self._layout.programs}:{_PATH}"}
        return self.node.run(["bash", "-c", command], timeout=600, env=env)

    def kubectl(self, *arguments: str, check: bool = True) -> Result:
        """Run kubectl in the node. Seconds of its only processor: `request` is what tests look with."""
        argv = [self._layout.program("kubectl"), "--kubeconfig", self.admin, *arguments]
        return self.node.run(argv, timeout=300, check=check)

    def install(self, values: Mapping[str, Any]) -> None:
        """Carry out the commands of docs/install.md, with values of ours beside theirs; waits for the driver."""
        file = self.node.shared / "values.yaml"
        file.write_text(yaml.safe_dump(dict(values)))
        for command in documented.commands(_PAGE.read_text(), "## Install"):
            self.shell(f"{command} --values {file}" if command.startswith("helm install ") else command)
        self.wait_driver()

    def wait_driver(self, seconds: float = 600) -> None:
        """Wait until the driver's pod is ready and the kubelet knows the driver."""
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/sealed-local-node-default"
        self.wait(path, ["status", "numberReady"], 1, seconds=seconds)
        drivers = f"/apis/storage.k8s.io/v1/csinodes/{parts.NODE}"
        self.wait(drivers, ["spec", "drivers", {"name": "sealed-local.csi"}, "nodeID"], parts.NODE, seconds=seconds)

    def request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One call of the API: `{"status": ..., "body": ...}`."""
        answer: dict[str, Any] = self._call("api:request", keys=self.keys, method=method, path=path, body=body)
        return answer

    def get(self, path: str) -> dict[str, Any]:
        """An object or a list."""
        return self._fine("GET", path)

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object in a collection."""
        return self._fine("POST", path, dict(body))

    def delete(self, path: str, seconds: float = 300) -> None:
        """Delete an object and wait until it is gone."""
        uid = self.get(path)["metadata"]["uid"]
        self._fine("DELETE", path)
        self._gone(path, uid, seconds)

    def gone(self, path: str, seconds: float = 300) -> None:
        """Wait until an object that something else deletes is no more."""
        answer = self.request("GET", path)
        if answer["status"] != 404:
            self._gone(path, answer["body"]["metadata"]["uid"], seconds)

    def _gone(self, path: str, uid: str, seconds: float) -> None:
        try:
            self._call("api:wait_gone", keys=self.keys, path=path, uid=uid, seconds=seconds)
        except RemoteError as error:
            raise self._with_events(error) from None

    def wait(self, path: str, field: Sequence[Any], *wanted: Any, seconds: float = 300) -> dict[str, Any]:
        """Wait until a field of an object has one of the values; returns the object. `field`: see `api.field_of`."""
        arguments = {"path": path, "field": list(field), "wanted": list(wanted), "seconds": seconds}
        try:
            found: dict[str, Any] = self._call("api:wait_field", keys=self.keys, **arguments)
        except RemoteError as error:
            raise self._with_events(error) from None
        return found

    def _with_events(self, error: RemoteError) -> AssertionError:
        """A wait that failed, with every event of the cluster: which of the parts is stuck stands there, if anywhere."""
        lines = [
            f"{event['metadata']['namespace']}/{event['involvedObject']['name']} {event['reason']}: {event['message']}"
            for event in self.get("/api/v1/events")["items"]
        ]
        return AssertionError("\n".join([str(error), *lines]))

    def wait_event(self, name: str, text: str, namespace: str = "default", seconds: float = 300) -> str:
        """Wait until an event on an object has `text` in its message; returns the message."""
        event = self._call("api:wait_event", keys=self.keys, namespace=namespace, name=name, text=text, seconds=seconds)
        return str(event["message"])

    def _fine(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = self.request(method, path, body)
        assert answer["status"] < 300, f"{method} {path}: {answer['status']}: {answer['body'].get('message')}"
        found: dict[str, Any] = answer["body"]
        return found

    def _call(self, function: str, **arguments: Any) -> Any:
        seconds = arguments.get("seconds", 120)
        return self.node.call(f"lab.cluster.{function}", call_timeout=seconds + 120, **arguments)


@contextmanager
def installed(programs: Programs, containers: Path) -> Iterator[Cluster]:
    """A node that is Ready and a driver that the kubelet knows, with the images of that disk; ends it afterwards."""
    made = Cluster(programs, containers)
    try:
        made.boot()
        made.install(values())
        yield made
    finally:
        made.close()


def values() -> dict[str, Any]:
    """The chart's values for the lab: what can't be had there is another, and what is optional is on."""
    return {
        # No proxy serves the modules of the published two: a stand-in registers the driver, and the kubelet asks /healthz.
        "images": {"registrar": {"repository": store.REGISTRAR, "tag": "lab"}},
        "node": {"livenessprobe": {"enabled": False}},
        "runtimeClassWarning": {"enabled": True},
    }
