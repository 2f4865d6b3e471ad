"""Whether the places where the driver writes are the node's own, and what is mounted there is seen by the node.

In a container each of them is a mount that the manifest must ask for. One that is left out, or of the wrong propagation,
is noticed nowhere else: calls succeed, and pods write in clear to the node's disk. Not in a container everything is right.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from csi.node import held_mount
from csi.node.held_mount import HeldMount
from csi.node.settings import Settings

# Numbers of linux/proc_ns.h: the kernel's first namespaces.
_FIRST_PIDS: Final = 0xEFFFFFFC
_FIRST_IPC: Final = 0xEFFFFFFF
_FIRST_MOUNTS: Final = (0xEFFFFFF8, 0xF0000000, 0xF0000001)
"""Fixed since Linux 6.18; before, the first number that was free."""
_EMPTY_DIR: Final = "/kubernetes.io~empty-dir/"
_LVM_LOCKS: Final = "/run/lock/lvm"
_UDEV: Final = "/run/udev"


def faults(settings: Settings, proc: Path = Path("/proc")) -> tuple[str, ...]:
    """What is wrong, each in a sentence that says what to change; nothing when the driver runs on the node itself."""
    if _on_the_node(proc):
        return ()
    try:
        return tuple(_faults(settings, proc))
    except (OSError, LookupError) as error:
        return (f"the mounts of this container can't be looked at: {error}",)


def _faults(settings: Settings, proc: Path) -> Iterator[str]:
    text = (proc / "self/mountinfo").read_bytes().decode(errors="surrogateescape")
    yield from _propagation(str(settings.kubelet_dir), text, proc)
    dev = _held("/dev", text, proc)
    if dev.fstype != "devtmpfs":
        yield _foreign("/dev", "volumes' devices would be missing on the node")
    yield from _own(str(settings.registry_root), "Kata would not find what is published", text, proc)
    if not settings.lvm_prefix:
        yield from _own(_LVM_LOCKS, "LVM's own commands on the node would not wait for the driver's", text, proc)
    if settings.config.udev:
        yield from _udev(text, proc)


def _propagation(kubelet: str, text: str, proc: Path) -> Iterator[str]:
    held = _held(kubelet, text, proc)
    node = held_mount.peer_groups(_text(proc / "1/mountinfo")) if _sees_the_node(proc) else None
    if held.shared is not None and (node is None or held.shared in node):
        return
    what = "private" if held.shared is None and held.master is None else "only received from the node"
    if held.shared is not None:
        what = "shared with other containers only"
    yield (
        f"mounts below {kubelet} are {what}: what is staged here would not reach kubelet, and pods would write to the "
        f"node's own disk. Set `mountPropagation: Bidirectional` for {kubelet} in the DaemonSet, and see that it is a "
        "shared mount on the node"
    )


def _own(path: str, otherwise: str, text: str, proc: Path) -> Iterator[str]:
    if not _is_the_nodes(path, text, proc):
        yield _foreign(path, otherwise)


def _udev(text: str, proc: Path) -> Iterator[str]:
    if not _is_the_nodes(_UDEV, text, proc) or not Path(f"{_UDEV}/control").exists():
        yield _foreign(_UDEV, "with `udev: true` LVM would wait for ever for a udev that it can't reach")
    if _inode(proc / "self/ns/ipc") != _FIRST_IPC:
        yield "with `udev: true` LVM and udev meet in the node's IPC namespace: set `hostIPC: true` in the DaemonSet"


def _foreign(path: str, otherwise: str) -> str:
    return f"{path} is not the node's own: {otherwise}. Mount the node's {path} there (hostPath) in the DaemonSet"


def _is_the_nodes(path: str, text: str, proc: Path) -> bool:
    there = _existing(path)
    if _sees_the_node(proc):
        try:
            return os.path.samestat(os.stat(there), os.stat(f"{proc}/1/root{there}"))  # noqa: PTH116
        except OSError:
            return False
    held, root = _held(path, text, proc), _held("/", text, proc)
    own_tmpfs = held.fstype == "tmpfs" and held.root == "/" and held.target == path
    return held.identity != root.identity and held.fstype != "overlay" and _EMPTY_DIR not in held.root and not own_tmpfs


def _held(path: str, text: str, proc: Path) -> HeldMount:
    return held_mount.find(text, _mount_identity(_existing(path), proc))


def _existing(path: str) -> str:
    """The path, or the nearest one above it that exists: there the missing part would be made."""
    found = Path(path)
    while not found.exists():
        found = found.parent
    return str(found)


def _mount_identity(path: str, proc: Path) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        fields = dict(line.split(":", 1) for line in _text(proc / f"self/fdinfo/{descriptor}").splitlines())
        return int(fields["mnt_id"])
    finally:
        os.close(descriptor)


def _on_the_node(proc: Path) -> bool:
    """Whether this process has the mounts of the node's first process."""
    if _inode(proc / "self/ns/pid") != _FIRST_PIDS:
        return False
    own, first = _inode(proc / "self/ns/mnt"), _inode(proc / "1/ns/mnt")
    return own == first if first is not None else own in _FIRST_MOUNTS


def _sees_the_node(proc: Path) -> bool:
    """Whether process 1 is the node's first one (`hostPID: true`), and may be looked at."""
    return _inode(proc / "self/ns/pid") == _FIRST_PIDS and _inode(proc / "1/ns/mnt") is not None


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape")
