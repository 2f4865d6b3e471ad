"""What the node agent does to make an ordinary Kubernetes node of User-mode Linux."""

import subprocess
import time
from pathlib import Path

from lab.cluster import parts

_MODULES = ("overlay", "veth", "bridge", "dummy", "br_netfilter", "dm-thin-pool")
_CONTROLLERS = "+cpu +io +memory +pids"
# The kubelet ends when it finds no clock frequency, and User-mode Linux tells none.
_PROCESSOR = "cpu MHz\t\t: 2400.000\nphysical id\t: 0\ncore id\t\t: 0\ncpu cores\t: 1\n"
_MACHINE_ID = "5ea1ed10ca1000000000000000000001\n"


def prepare(state: str, kubelet: str) -> None:
    """Network, cgroups, names and the two disks whose content outlives a reboot. Run once after each boot."""
    _run("modprobe", "-a", *_MODULES)
    _run("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text(_CONTROLLERS)
    Path("/run/cpuinfo").write_text(f"{Path('/proc/cpuinfo').read_text().strip()}\n{_PROCESSOR}\n")
    _run("mount", "--bind", "/run/cpuinfo", "/proc/cpuinfo")
    Path("/etc/machine-id").write_text(_MACHINE_ID)
    # A link on some machines; pods get a copy of it.
    Path("/etc/resolv.conf").unlink(missing_ok=True)
    Path("/etc/resolv.conf").touch()
    _run("hostname", parts.NODE)
    _run("ip", "link", "add", "eth0", "type", "dummy")
    for address in (f"{parts.ADDRESS}/24", f"{parts.API_SERVICE}/32"):
        _run("ip", "address", "add", address, "dev", "eth0")
    _run("ip", "link", "set", "eth0", "up")
    _run("ip", "route", "add", "default", "dev", "eth0")
    _mount_disks(state, kubelet)


def _mount_disks(state: str, kubelet: str) -> None:
    _run("mkdir", "-p", "/run/state", "/var/lib/etcd", "/var/log/pods")
    _run("mount", state, "/run/state")
    for place, path in (("etcd", "/var/lib/etcd"), ("pods", "/var/log/pods")):
        Path("/run/state", place).mkdir(exist_ok=True, mode=0o700)
        _run("mount", "--bind", f"/run/state/{place}", path)
    # A filesystem of its own: a bind of a folder of another one would show each volume at two places.
    _run("umount", parts.KUBELET_ROOT)
    _run("mount", kubelet, parts.KUBELET_ROOT)


def mount_containers(disk: str) -> None:
    """containerd's root, with the images in it."""
    _run("modprobe", "overlay")
    _run("mkdir", "-p", "/var/lib/containerd")
    _run("mount", disk, "/var/lib/containerd")


def wait_for_containerd(seconds: float) -> None:
    """Wait until it answers."""
    give_up = time.monotonic() + seconds
    argv = ["ctr", "--address", parts.CONTAINERD, "version"]
    while subprocess.run(argv, capture_output=True).returncode != 0:
        if time.monotonic() > give_up:
            raise TimeoutError(f"containerd does not answer within {seconds:g} s")
        time.sleep(0.2)


def import_images(archives: list[str]) -> None:
    """Import OCI archives where the kubelet looks for images."""
    for archive in archives:
        _run("ctr", "--address", parts.CONTAINERD, "--namespace", "k8s.io", "images", "import", archive)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()}")
