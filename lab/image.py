"""Builds the images of the Dockerfile as folders, where no container engine runs: the same stages, the same instructions.

`FROM debian:...` is a minimal Debian of that release from the machine's own mirror; RUN is carried out by chroot. The
machine's name servers, authorities and pip settings are lent to it as copies, as an engine lends its network: a package's
scripts run as root there, and nothing of the machine may be in their reach. Stages are kept below the cache, each under the
digest of all that went into it.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.alone import alone
from lab.dockerfile import Stage, stages
from lab.node import REPOSITORY

CACHE = Path(os.environ.get("SEALED_LOCAL_CACHE", REPOSITORY / ".cache")) / "images"
_SUITES = {"12": "bookworm", "13": "trixie"}
_RUN_SECONDS = 600
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_LENT_AUTHORITIES = "run/authorities.pem"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built stage: its root folder and what a container of it would start with."""

    root: Path
    env: dict[str, str]
    user: str = "0:0"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def argv(self, *arguments: str) -> list[str]:
        """The command line that starts a program in the image by chroot, as its user."""
        settings = [f"{name}={value}" for name, value in self.env.items()]
        return ["chroot", f"--userspec={self.user}", str(self.root), "env", "-i", *settings, *arguments]


class Builder:
    """Builds stages of one Dockerfile, each once."""

    def __init__(self, dockerfile: Path = REPOSITORY / "Dockerfile", context: Path = REPOSITORY) -> None:
        self._context = context
        self._stages = {stage.name: stage for stage in stages(dockerfile.read_text())}

    def build(self, name: str) -> Image:
        """The image of a stage. Raises `CalledProcessError` when one of its commands fails."""
        with alone(CACHE):
            return self._finish(name)[0]

    def _finish(self, name: str) -> tuple[Image, str]:
        if name not in self._stages:
            return _debian(name)
        stage = self._stages[name]
        base, digest = self._finish(stage.base)
        key = self._key(stage, digest)
        image = Image(
            root=CACHE / f"{name}-{key[:16]}",
            env=base.env | _environment(stage, base.env),
            user=_last(stage, "USER", base.user),
            entrypoint=tuple(json.loads(_last(stage, "ENTRYPOINT", "[]"))),
            command=tuple(json.loads(_last(stage, "CMD", "[]"))),
        )
        if not image.root.is_dir():
            print(f"lab: building the image {name}", flush=True)
            _whole(image.root, lambda root: self._make(stage, base.root, root, base.env))
        return image, key

    def _key(self, stage: Stage, base: str) -> str:
        # An image that this file makes otherwise is another image.
        key = hashlib.sha256(base.encode() + Path(__file__).read_bytes())
        for instruction, rest in stage.instructions:
            key.update(f"{instruction} {rest}\n".encode())
            if instruction != "COPY":
                continue
            origin, sources, _ = _copy_words(rest)
            if origin is not None:
                key.update(self._finish(origin)[1].encode())
                continue
            for path in (found for source in sources for found in _files(self._context / source)):
                key.update(f"{path.relative_to(self._context)}\n".encode() + path.read_bytes())
        return key.hexdigest()

    def _make(self, stage: Stage, base: Path, root: Path, env: dict[str, str]) -> None:
        """`env` is what the stage inherits; a line of its own counts for the lines after it."""
        subprocess.run(["cp", "-a", f"{base}/.", str(root)], check=True)
        for instruction, rest in stage.instructions:
            if instruction == "ENV":
                env = env | _pairs(rest)
            elif instruction == "COPY":
                self._copy(rest, root)
            elif instruction == "RUN":
                run(root, rest, env)

    def _copy(self, rest: str, root: Path) -> None:
        origin, sources, target = _copy_words(rest)
        into = root / target.lstrip("/")
        folder = self._context if origin is None else self._finish(origin)[0].root
        for source in (folder / name.lstrip("/") for name in sources):
            if source.is_dir():
                into.parent.mkdir(parents=True, exist_ok=True)
                # What .dockerignore names is left out of the context; a stage's byte code is part of the image.
                left_out = _ignored if origin is None else None
                shutil.copytree(source, into, symlinks=True, ignore=left_out, dirs_exist_ok=True)
            else:
                place = into / source.name if target.endswith("/") else into
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)


def run(root: Path, command: str, env: dict[str, str]) -> None:
    """Carry out one RUN, in a mount namespace of its own that ends with the command."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")} | env
    settings |= {"DEBIAN_FRONTEND": "noninteractive", **_lend(root)}
    mounts = [
        f"mount -t tmpfs -o mode=0755 tmpfs {root}/dev",
        *(f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}" for name in DEVICES),
        f"mount -t proc -o ro proc {root}/proc",
    ]
    inner = ["chroot", str(root), "env", "-i", *(f"{name}={value}" for name, value in settings.items())]
    script = " && ".join([*mounts, shlex.join([*inner, "sh", "-c", command])])
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_RUN_SECONDS,
    )
    (root / _LENT_AUTHORITIES).unlink(missing_ok=True)
    if done.returncode != 0:
        raise AssertionError(f"RUN {command}: status {done.returncode}: {done.stderr[-3000:]}")


def _lend(root: Path) -> dict[str, str]:
    """Copy in what a command needs to reach the machine's registries; returns the variables that say where it lies."""
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    if not _AUTHORITIES.exists():
        return {}
    shutil.copy(_AUTHORITIES, root / _LENT_AUTHORITIES)
    return dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), f"/{_LENT_AUTHORITIES}")


def _debian(reference: str) -> tuple[Image, str]:
    """A minimal Debian of the release that a reference names (`debian:12.12-slim`), from the machine's own mirror."""
    name, _, tag = reference.partition(":")
    suite = _SUITES.get(tag.partition(".")[0])
    if name != "debian" or suite is None:
        raise ValueError(f"FROM {reference}: the lab can make Debian {', '.join(_SUITES)} only")
    root = CACHE / f"debian-{suite}"
    if not root.is_dir():
        print(f"lab: making a minimal Debian {suite}", flush=True)
        _whole(root, lambda folder: _debootstrap(suite, folder))
    return Image(root=root, env={}), suite


def _debootstrap(suite: str, root: Path) -> None:
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)"], check=True, capture_output=True, text=True
    )
    mirror = next(site for site in sites.stdout.splitlines() if site.endswith("/debian"))
    argv = ["debootstrap", "--variant=minbase", suite, str(root), mirror]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_RUN_SECONDS)
    if done.returncode != 0:
        raise AssertionError(f"debootstrap: {done.stdout[-2000:]}{done.stderr[-1000:]}")
    # As in Debian's own images: an installed package starts no service.
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)


def _whole(root: Path, make: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all."""
    unfinished = root.with_name(root.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    make(unfinished)
    unfinished.rename(root)


def _copy_words(rest: str) -> tuple[str | None, list[str], str]:
    words = rest.split()
    origin = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None)
    names = [word for word in words if not word.startswith("--")]
    return origin, names[:-1], names[-1]


def _environment(stage: Stage, inherited: dict[str, str]) -> dict[str, str]:
    found = dict(inherited)
    for instruction, rest in stage.instructions:
        if instruction == "ENV":
            found |= _pairs(rest)
    return found


def _pairs(rest: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(rest))


def _last(stage: Stage, instruction: str, default: str) -> str:
    return next((rest for word, rest in reversed(stage.instructions) if word == instruction), default)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(found for found in path.rglob("*") if found.is_file() and "__pycache__" not in found.parts)


def _ignored(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]
