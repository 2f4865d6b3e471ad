"""The guest image of deploy/guest-image, made by its own commands, with the lab's stand-ins for Kata's programs beside it.

Where the recipe wants Kata's programs, scripts start the lab's stand-ins, which travel in an archive that the launcher
appends: no release of Kata can be had here. They run on the bundle's interpreter. All else is as a person makes it.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab.alone import alone
from lab.guest_image import GuestImage
from lab.image import Builder
from lab.node import REPOSITORY

CACHE = Path(os.environ.get("SEALED_LOCAL_CACHE", REPOSITORY / ".cache")) / "recipe"
RECIPE = REPOSITORY / "deploy/guest-image"
PYTHON = "/opt/sealed-local/bin/python3"
PLAYED = "/usr/lib/played"
HUB = "/usr/local/bin/confidential-data-hub"
_PLAYED_CODE = ("guest_agent.py", "kata_agent.py", "hub.py", "fuse.py")
_AGENT = f"""#!/bin/sh
# Plays kata-agent as the first process: mounts what the real one mounts, and ends where one of these is there already.
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
{PLAYED}/busybox ip link set lo up
{PLAYED}/busybox ip addr add 10.0.2.15/24 dev eth0
{PLAYED}/busybox ip link set eth0 up
{PLAYED}/busybox ip route add default via 10.0.2.2
exec {PYTHON} {PLAYED}/guest_agent.py
"""
_STOCK_HUB = f"""#!/bin/sh
exec {PYTHON} {PLAYED}/hub.py "$@"
"""


def build() -> GuestImage:
    """Kernel and initrd as the recipe's README makes them, with an empty file for the agent."""
    rootfs = Builder().build("guest-rootfs").root
    key = hashlib.sha256(rootfs.name.encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    folder = CACHE / key
    with alone(CACHE):
        if not folder.is_dir():
            shutil.rmtree(CACHE, ignore_errors=True)
            _make(rootfs, folder)
    return GuestImage(kernel=folder / "vmlinuz", initramfs=folder / "initrd", root=None)


def initrd(rootfs: Path, out: Path) -> None:
    """What a person does with the root filesystem: the agent goes in, and an initrd is made of it."""
    with tempfile.TemporaryDirectory(prefix="sealed-lab-") as folder:
        filled = Path(folder, "rootfs")
        subprocess.run(["cp", "-a", str(rootfs), str(filled)], check=True)
        for path, content in {"usr/bin/kata-agent": _AGENT, f"{HUB[1:]}.real": _STOCK_HUB}.items():
            (filled / path).write_text(content)
            (filled / path).chmod(0o755)
        subprocess.run([str(RECIPE / "make-initrd"), str(filled), str(out)], check=True, capture_output=True)


def played() -> dict[str, bytes]:
    """The stand-ins' files, to append."""
    code = {f"{PLAYED[1:]}/{name}": (REPOSITORY / "lab" / name).read_bytes() for name in _PLAYED_CODE}
    return code | {f"{PLAYED[1:]}/busybox": Path("/bin/busybox").read_bytes()}


def _make(rootfs: Path, folder: Path) -> None:
    print("lab: making the guest image of deploy/guest-image", flush=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    initrd(rootfs, unfinished)
    # The same bytes, unpacked ahead: an emulated processor takes a minute for what a real one does in a second.
    (unfinished / "initrd").write_bytes(gzip.decompress((unfinished / "initrd.img").read_bytes()))
    unfinished.rename(folder)
