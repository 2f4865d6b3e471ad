"""The images of the Dockerfile, built by its own instructions, and their programs started from them in the lab's node."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.driver import MIB, Driver, block_capability, lvs, mount_capability
from lab.image import DEVICES, Builder, Image, run
from lab.node import REPOSITORY, Node

pytestmark = pytest.mark.lab

_SHARED_WITH_THE_HOST = ("/dev", "/run", "/sys", "/proc", "/var/lib/kubelet")


@pytest.fixture(scope="module")
def images(node: Node) -> Iterator[dict[str, Image]]:
    """All three images, with the mounts in the node that a privileged pod gets."""
    builder = Builder()
    made = {name: builder.build(name) for name in ("node", "guest", "broker")}
    for image in made.values():
        for path in _SHARED_WITH_THE_HOST:
            node.run(["mkdir", "-p", f"{image.root}{path}", path])
            node.run(["mount", "--rbind", path, f"{image.root}{path}"])
    yield made
    for image in made.values():
        for path in _SHARED_WITH_THE_HOST:
            node.run(["umount", "--recursive", "--lazy", f"{image.root}{path}"])


class ImageDriver(Driver):
    """The driver started as its container would be."""

    image: Image

    def argv(self, module: str = "csi") -> list[str]:
        """The image's entry point with the options of `Driver`."""
        plain = super().argv(module)
        return self.image.argv(*self.image.entrypoint, *plain[plain.index("node") + 1 :])


def test_the_node_image_serves_a_volume_from_claim_to_deletion(node: Node, images: dict[str, Image]) -> None:
    driver = ImageDriver(node, {"pools": [{"name": "main", "vgs": ["vg0"]}]})
    driver.image = images["node"]
    driver.start()
    for name, capability in (("pvc-image-ext4", mount_capability("ext4")), ("pvc-image-xfs", mount_capability("xfs")),
                             ("pvc-image-block", block_capability())):  # fmt: skip
        volume = driver.create(name, 320 * MIB, capability).ok()["volume"]
        driver.stage(volume, capability).ok()
        driver.publish(volume, capability).ok()
        if "mount" in capability:
            node.run(["sh", "-c", f"echo kept > {driver.target_path(name)}/file"])
        driver.unpublish(name).ok()
        driver.unstage(name).ok()
        driver.deleted(name)
        assert name not in lvs(node)
    assert driver.stop() == 0


def test_the_node_image_holds_nothing_that_could_use_a_key(node: Node, images: dict[str, Image]) -> None:
    image = images["node"]
    imported = node.run(image.argv("/opt/sealed-local/bin/python", "-c", "import cryptography"), check=False)
    assert b"No module named 'cryptography'" in imported.stderr
    for program in ("cryptsetup", "pip"):
        assert node.run(image.argv("sh", "-c", f"command -v {program}"), check=False).rc != 0
    for other in ("guest", "broker"):
        absent = node.run(image.argv("sealed-local", other, "--help"), check=False)
        assert (absent.rc, f"{other} is not installed here" in absent.stderr.decode()) == (2, True)


@pytest.mark.parametrize("program", ["node", "guest", "broker"])
def test_an_image_holds_what_its_program_reaches_and_all_of_it_compiled(
    images: dict[str, Image], tmp_path: Path, program: str
) -> None:
    """Without byte code a start takes minutes in the lab's node, and four times as long anywhere."""
    shutil.copytree(REPOSITORY / "csi", tmp_path / "csi")
    subprocess.run([sys.executable, REPOSITORY / "scripts/reached.py", tmp_path, program], check=True)
    (site,) = images[program].root.glob("opt/sealed-local/lib/python3*/site-packages")
    files = {path.relative_to(site) for path in (site / "csi").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert files == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    sources = {file for file in files if file.suffix == ".py"}
    compiled = {path.relative_to(site) for path in (site / "csi").rglob("*.pyc")}
    kind = "cpython-311.opt-2" if images[program].env.get("PYTHONOPTIMIZE") == "2" else "cpython-311"
    assert compiled == {file.parent / "__pycache__" / f"{file.stem}.{kind}.pyc" for file in sources}


def test_the_guest_image_has_the_tools_that_it_runs(node: Node, images: dict[str, Image]) -> None:
    image = images["guest"]
    assert node.run(image.argv(*image.entrypoint, "status")).text.strip() == "no volume is open"
    for program in ("cryptsetup", "dmsetup", "mkfs.ext4", "e2fsck", "mkfs.xfs", "blkid", "mount", "umount"):
        assert node.run(image.argv("sh", "-c", f"command -v {program}")).text.strip()


def test_the_broker_image_serves_as_an_ordinary_user(node: Node, images: dict[str, Image]) -> None:
    image = images["broker"]
    folder, log = "/run/broker-image", f"{node.shared}/broker-image.log"
    node.run(["install", "-d", "-o", "65532", "-g", "65532", "-m", "0700", folder])
    node.run(image.argv(*image.entrypoint, "init", folder, "--host", "127.0.0.1"))
    pid = node.spawn(image.argv(*image.entrypoint, "serve", folder, "--listen", "127.0.0.1:8471"), log)
    node.call("lab.sealed:wait_for_port", port=8471)
    assert node.run(["stat", "-c", "%u", f"{folder}/broker.sqlite"]).text.strip() == "65532"
    assert node.run(["stat", "-c", "%u", f"/proc/{pid}"]).text.strip() == "65532"
    assert node.run(image.argv(*image.entrypoint, "volume", "list", "--json", "--dir", folder)).text == ""
    node.kill(pid, 15)
    assert node.wait(pid) == 0


def test_a_step_of_a_build_reaches_nothing_of_the_machine(images: dict[str, Image]) -> None:
    root = images["node"].root
    run(root, "cat /proc/self/mountinfo > /run/mounts; echo x > /dev/null", {})
    lines = [line.split() for line in (root / "run/mounts").read_text().splitlines()]
    writable = {line[4] for line in lines if "ro" not in line[5].split(",")}
    assert {place for place in writable if not place.startswith("/dev/")} == {"/dev"}
    assert all(place.removeprefix("/dev/") in DEVICES for place in writable - {"/dev"})
    (root / "run/mounts").unlink()
