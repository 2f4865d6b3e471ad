"""Whether the driver notices, in real mount namespaces, that what it mounts or writes would be seen by nobody else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_PROGRAM = """
import json, sys
from csi.node import places, settings
kubelet, registry, config, *prepare = sys.argv[1:]
import subprocess
for line in prepare:
    subprocess.run(line, shell=True, check=True)
given = ["--node-id", "n", "--kubelet-dir", kubelet, "--kata-registry", registry, "--config", config]
print(json.dumps(places.faults(settings.load(given, {}))))
"""


@pytest.fixture(autouse=True)
def _needs() -> None:
    tried = (
        subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True) if os.geteuid() == 0 else None
    )
    if tried is None or tried.returncode:
        pytest.skip("not root, or no mount namespaces")


class Container:
    """Runs the check with mounts of its own, made of the node's as a container runtime would."""

    def __init__(self, folder: Path) -> None:
        self.kubelet, self.registry, self.config = folder / "kubelet", folder / "registry", folder / "node.yaml"
        self.kubelet.mkdir()
        self.registry.mkdir()
        self.config.write_text("udev: false\n")

    def faults(self, propagation: str, *prepare: str) -> list[str]:
        """What is found after the shell lines `prepare`, which see the paths as $K and $R."""
        lines = [line.replace("$K", str(self.kubelet)).replace("$R", str(self.registry)) for line in prepare]
        own = [str(self.kubelet), str(self.registry), str(self.config)]
        argv = ["unshare", "--mount", "--propagation", propagation, sys.executable, "-c", _PROGRAM, *own, *lines]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout)
        return found


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


# A hostPath below a path of its own; the node's tree stands for the node, which is not shared on every machine.
_OWN_PLACES = ("mkdir -p /run/lock/lvm", "mount --bind $R $R", "mount --bind /run/lock/lvm /run/lock/lvm")
_SHARED = ("mount --bind $K $K", "mount --make-shared $K")


def test_on_the_node_itself_nothing_is_asked_for(container: Container) -> None:
    own = [str(container.kubelet), str(container.registry), str(container.config)]
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *own], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("kubelet", "what"),
    [
        ((), "private"),
        (("mount --bind $K $K", "mount --make-private $K"), "private"),
        (("mount --bind $K $K", "mount --make-shared $K", "mount --bind $K $K", "mount --make-slave $K"), "received"),
    ],
)
def test_a_kubelet_directory_of_the_wrong_propagation_is_named_with_the_remedy(
    container: Container, kubelet: tuple[str, ...], what: str
) -> None:
    faults = [fault for fault in container.faults("private", *_OWN_PLACES, *kubelet) if "mounts below" in fault]
    assert len(faults) == 1
    assert str(container.kubelet) in faults[0]
    assert what in faults[0]
    assert "mountPropagation: Bidirectional" in faults[0]


def test_a_registry_of_the_containers_own_is_named(container: Container) -> None:
    faults = container.faults("private", *_OWN_PLACES, *_SHARED, "mount -t tmpfs own $R")
    assert any(fault.startswith(f"{container.registry} is not the node's own: Kata would not find") for fault in faults)


def test_a_dev_of_the_containers_own_is_named(container: Container) -> None:
    faults = container.faults("private", *_OWN_PLACES, *_SHARED, "mount -t tmpfs own /dev")
    assert any(fault.startswith("/dev is not the node's own") for fault in faults)


def test_locks_of_lvm_of_the_containers_own_are_named(container: Container) -> None:
    faults = container.faults("private", *_OWN_PLACES, *_SHARED, "mount -t tmpfs own /run/lock/lvm")
    assert any(fault.startswith("/run/lock/lvm is not the node's own") for fault in faults)


def test_a_udev_that_can_not_be_reached_is_named_only_where_it_is_used(container: Container) -> None:
    assert not any("/run/udev" in fault for fault in container.faults("private"))
    container.config.write_text("udev: true\n")
    faults = container.faults("private", "mkdir -p /run/udev", "mount -t tmpfs own /run/udev")
    assert any(fault.startswith("/run/udev is not the node's own") for fault in faults)
