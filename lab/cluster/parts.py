"""How each part of the cluster is started, and the files that it is started with. Pure: paths in, words and texts out."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab.cluster import documented, users
from lab.node import REPOSITORY

NODE = "lab-node"
ADDRESS = "10.9.9.9"
"""Of the node, on an interface that leads nowhere: kubelet and API server take no loopback address."""
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
"""The service `kubernetes`, an address of the node's own: there is no kube-proxy, and pods reach it all the same."""
PORT = 443
SERVER = f"https://{ADDRESS}:{PORT}"
CONTAINERD = "/run/containerd/containerd.sock"
KUBELET_ROOT = "/var/lib/kubelet"
PAUSE = "localhost/pause:lab"
USERS = (users.ADMIN, users.CONTROLLERS, users.SCHEDULER, users.node_user(NODE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Folders that the parts are started with, seen under the same path inside and outside the node."""

    programs: Path
    keys: Path
    files: Path

    def program(self, name: str) -> str:
        """Path of a part."""
        return str(self.programs / name)

    def kubeconfig(self, user: users.User) -> str:
        """Path of a user's kubeconfig."""
        return str(self.keys / users.kubeconfig_file(user))


def write_files(layout: Layout) -> None:
    """The files of scheduler, kubelet, containerd and CNI."""
    folder = layout.files
    (folder / "cni").mkdir(parents=True)
    (folder / "scheduler.yaml").write_text(_scheduler_file(layout))
    (folder / "kubelet.json").write_text(_kubelet_file(layout))
    (folder / "containerd.toml").write_text(_containerd_file(layout))
    (folder / "cni/10-lab.conflist").write_text(_cni_file())


def etcd() -> list[str]:
    """The store. It flushes each write: a power cut is one of the tests."""
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        "etcd", "--data-dir", "/var/lib/etcd", "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
    ]  # fmt: skip


def apiserver(layout: Layout) -> list[str]:
    """The API server, with the authorizers and the admission of a real cluster."""
    keys = layout.keys
    return [
        layout.program("kube-apiserver"),
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={ADDRESS}",
        f"--secure-port={PORT}",
        f"--tls-cert-file={keys}/apiserver.pem",
        f"--tls-private-key-file={keys}/apiserver.key",
        f"--client-ca-file={keys}/{users.AUTHORITY}",
        f"--token-auth-file={keys}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={keys}/service-accounts.key",
        f"--service-account-signing-key-file={keys}/service-accounts.key",
        f"--service-cluster-ip-range={SERVICES}",
        f"--kubelet-certificate-authority={keys}/{users.AUTHORITY}",
        f"--kubelet-client-certificate={keys}/kubelet-client.pem",
        f"--kubelet-client-key={keys}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def controllers(layout: Layout) -> list[str]:
    """The controller manager. Each controller has its own account, as in a real cluster."""
    return [
        layout.program("kube-controller-manager"),
        f"--kubeconfig={layout.kubeconfig(users.CONTROLLERS)}",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={layout.keys}/service-accounts.key",
        f"--root-ca-file={layout.keys}/{users.AUTHORITY}",
        "--leader-elect=false",
        "--secure-port=0",
    ]


def scheduler(layout: Layout) -> list[str]:
    """The scheduler: its own profile as it comes, and the one of docs/install.md that packs."""
    return [
        layout.program("kube-scheduler"),
        f"--config={layout.files}/scheduler.yaml",
        "--secure-port=0",
    ]


def kubelet(layout: Layout) -> list[str]:
    """The kubelet of the one node."""
    return [
        layout.program("kubelet"),
        f"--config={layout.files}/kubelet.json",
        f"--kubeconfig={layout.kubeconfig(users.node_user(NODE))}",
        f"--hostname-override={NODE}",
        f"--node-ip={ADDRESS}",
        f"--root-dir={KUBELET_ROOT}",
    ]


def containerd(layout: Layout) -> list[str]:
    """The container runtime."""
    return ["containerd", "--config", f"{layout.files}/containerd.toml"]


def _scheduler_file(layout: Layout) -> str:
    page = documented.block((REPOSITORY / "docs/install.md").read_text(), "### Which node a volume goes to", "yaml")
    config = {
        **yaml.safe_load(page),
        "clientConnection": {"kubeconfig": layout.kubeconfig(users.SCHEDULER)},
        "leaderElection": {"leaderElect": False},
    }
    return yaml.safe_dump(config)


def _kubelet_file(layout: Layout) -> str:
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.keys / users.AUTHORITY)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(layout.keys / "kubelet.pem"),
        "tlsPrivateKeyFile": str(layout.keys / "kubelet.key"),
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "failSwapOn": False,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # What was imported can't be pulled again.
        "imageGCHighThresholdPercent": 100,
        "resolvConf": "",
        # Without one, each pod gets a warning. Nothing answers there.
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
    }
    return json.dumps(settings, indent=1)


def _containerd_file(layout: Layout) -> str:
    return f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{layout.files}/cni"
"""


def _cni_file() -> str:
    """Each pod has a pair of interfaces of its own; addresses are kept where a reboot forgets them."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.244.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/run/cni/networks",
    }
    plugin = {"type": "ptp", "ipMasq": False, "ipam": addresses}
    return json.dumps({"cniVersion": "0.4.0", "name": "lab", "plugins": [plugin]}, indent=1)
