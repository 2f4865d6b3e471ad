"""The programs of the cluster, built from the Go module proxy once and kept in the cache."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.node import REPOSITORY

PARTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
"""Names that the one program `kubernetes` is called by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Paths of static programs, the same outside and inside the node, whose root is the machine's."""

    kubernetes: Path
    provisioner: Path
    registrar: Path
    helm: Path


def build(cache: Path) -> Programs:
    """Build what is missing (17 CPU minutes on a new machine). Raises `CalledProcessError`; the build says why."""
    done = subprocess.run([REPOSITORY / "scripts/build-kubernetes"], check=True, stdout=subprocess.PIPE, text=True)
    paths = parse(done.stdout)
    helm = cache / "bin/helm"
    subprocess.run([REPOSITORY / "scripts/build-helm", helm], check=True)
    return Programs(
        kubernetes=paths["kubernetes"],
        provisioner=paths["csi-provisioner"],
        registrar=paths["registrar"],
        helm=helm,
    )


def parse(output: str) -> dict[str, Path]:
    """What scripts/build-kubernetes prints: a line `NAME PATH` for each program."""
    pairs = (line.split(" ", 1) for line in output.splitlines())
    return {name: Path(path) for name, path in pairs}


def link(programs: Programs, folder: Path) -> None:
    """Make the names that the programs are called by in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        (folder / part).symlink_to(programs.kubernetes)
    (folder / "helm").symlink_to(programs.helm)
