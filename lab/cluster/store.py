"""The disk with the cluster's images: containerd in a node fills it from archives once, the cache keeps it."""

import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab.cluster import archive, parts
from lab.cluster.archive import Content, Start
from lab.cluster.programs import Programs
from lab.image import Builder
from lab.node import REPOSITORY
from lab.uml import UmlNode

CHART = REPOSITORY / "deploy/helm/sealed-local"
DOCUMENTED = "registry.example.com/sealed-local-node"
"""What the pages call the product's image: the commands there are run as they stand."""
TEST_IMAGE = "localhost/busybox:lab"
REGISTRAR = "localhost/registrar-stand-in"
_PAUSE = ("/bin/sleep", "1000000000")
_GIB = 1024**3
_DISK_BYTES = 8 * _GIB
_IMPORT_SECONDS = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An image as it is named in pods."""

    name: str
    content: Content
    start: Start
    digest: str
    """Of what it is made from; another digest makes another disk."""


def wanted(programs: Programs) -> list[Wanted]:
    """What the pods of the chart and of the tests start from. Builds the product's image by its Dockerfile when needed."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())["images"]
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    return [
        _built("node", f"{DOCUMENTED}:{version}"),
        _built("cluster", f"{values['cluster']['repository']}:{version}"),
        _program(f"{values['provisioner']['repository']}:{values['provisioner']['tag']}", programs.provisioner),
        _program(f"{REGISTRAR}:lab", programs.registrar),
        _busybox(parts.PAUSE, Start(entrypoint=_PAUSE)),
        _busybox(TEST_IMAGE, Start(entrypoint=("/bin/sh",))),
    ]


def _built(target: str, name: str) -> Wanted:
    """An image of the product, by the Dockerfile."""
    image = Builder().build(target)
    return Wanted(
        name=name,
        content=Content(root=image.root),
        start=Start(entrypoint=image.entrypoint, env=image.env, user=image.user),
        digest=image.root.name,  # a stage lies under the digest of all that went into it
    )


def of_suite(names: Sequence[str], agnhost: Path) -> list[Wanted]:
    """Stand-ins for those images of Kubernetes' storage tests whose programs can be had: a shell, and agnhost's program.

    `names`: all that the tests name. A pod with another one stays without its image.
    """
    starts = {
        "agnhost": Start(entrypoint=("/agnhost",), command=("pause",)),
        "busybox": Start(command=("sh",)),
        "glibc-dns-testing": Start(command=("sh",)),  # its tests of volumes use nothing but the shell and dd
        "nginx": Start(command=("sh",)),  # its tests use nothing but the shell
        "pause": Start(entrypoint=_PAUSE),
    }
    more = {kind: {"agnhost": agnhost} for kind in starts}
    # Where a device is written, dd has to leave the page cache out as busybox's can't. Its shell would prefer its own dd.
    more["glibc-dns-testing"] |= _with_libraries("bin/dd") | _with_libraries("bin/sh")
    kinds = {name: name.rpartition("/")[2].partition(":")[0] for name in names}
    return [_busybox(name, starts[kind], more[kind]) for name, kind in kinds.items() if kind in starts]


def disk(images: Sequence[Wanted], cache: Path, name: str = "containers") -> Path:
    """A disk with a filesystem for /var/lib/containerd that holds the images. Only the newest one of a name is kept."""
    folder = cache / "cluster"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{_key(images)}.img"
    if not path.exists():
        print("lab: importing the cluster's images", flush=True)
        unfinished = folder / f"unfinished-{os.getpid()}.img"
        try:
            _make(images, unfinished)
            for old in folder.glob(f"{name}-*.img"):
                old.unlink()
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return path


def _make(images: Sequence[Wanted], path: Path) -> None:
    """Boot a node with the disk, let containerd import, end it in order."""
    node = UmlNode((_DISK_BYTES,))
    format_disk(node.images[0], _DISK_BYTES)
    layout = parts.Layout(programs=node.shared, keys=node.shared, files=node.shared / "files")
    parts.write_files(layout)
    archives = _archives(images, node.shared)
    with node:
        node.call("lab.cluster.node_side:mount_containers", disk=node.disks[0])
        pid = node.spawn(parts.containerd(layout), f"{node.shared}/containerd.log")
        node.call("lab.cluster.node_side:wait_for_containerd", seconds=120, call_timeout=150)
        node.call(
            "lab.cluster.node_side:import_images",
            archives=[str(archive) for archive in archives],
            call_timeout=_IMPORT_SECONDS,
        )
        node.kill(pid, signal.SIGTERM)
        node.wait(pid)
        node.run(["umount", "/var/lib/containerd"])
        node.stop()
        subprocess.run(["cp", "--sparse=always", node.images[0], path], check=True)


def format_disk(path: Path, size: int) -> None:
    """A sparse file with an empty ext4."""
    path.touch()
    os.truncate(path, size)
    options = "lazy_itable_init=1,lazy_journal_init=1"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, path], check=True)


def _program(name: str, path: Path) -> Wanted:
    inside = path.name.rpartition("-")[0].rpartition("-")[0]
    return Wanted(
        name=name,
        content=Content(programs={inside: path}),
        start=Start(entrypoint=(f"/{inside}",)),
        digest=path.name,  # a built program is named by the digest of what it is built from
    )


def _with_libraries(program: str) -> dict[str, Path]:
    """A program of this machine and the libraries that it is linked to, by their paths in an image."""
    said = subprocess.run(["ldd", f"/{program}"], check=True, capture_output=True, text=True).stdout
    return {path: Path(f"/{path}").resolve() for path in (program, *re.findall(r"/(lib\S+) \(0x", said))}


def _busybox(name: str, start: Start, more: Mapping[str, Path] | None = None) -> Wanted:
    """An image of busybox, and of more programs by their paths in it."""
    programs = {"bin/busybox": Path("/bin/busybox"), **(more or {})}
    applets = subprocess.run([programs["bin/busybox"], "--list"], check=True, capture_output=True, text=True).stdout
    links = {path: "busybox" for applet in applets.split() if (path := f"bin/{applet}") not in programs}
    return Wanted(
        name=name,
        content=Content(programs=programs, links=links),
        start=start,
        digest=" ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in programs.values()),
    )


def _key(images: Sequence[Wanted]) -> str:
    key = hashlib.sha256(Path(__file__).read_bytes() + Path(archive.__file__).read_bytes())
    for image in images:
        key.update(f"{image.name} {image.digest}\n".encode())
    return key.hexdigest()[:16]


def _archives(images: Sequence[Wanted], folder: Path) -> list[Path]:
    made = []
    for number, image in enumerate(images):
        path = folder / f"{number}.tar"
        archive.write(path, image.name, image.content, image.start)
        made.append(path)
    return made
