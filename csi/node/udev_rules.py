"""Rules that keep the host's udev from reading what tenants write: text of the rules, and putting them in place.

udev looks for a filesystem on every block device and leads `/dev/disk/by-uuid` and `by-label` to what it finds, starts
arrays, and scans for LVM and btrfs. A pod that writes the host's own label to its volume would take over that link. Rules
below /run last until the next boot; until the driver runs again, none of its volumes is active.

The same text stands in two files: before distributions that number device-mapper's own rules from 10 (Red Hat, upstream)
look for content, and before those that number them from 55 (Debian). A device is known by sysfs alone, so it needs neither.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from csi.core import files
from csi.core.errors import SealedLocalError
from csi.node.config import NodeConfig
from csi.node.lvm import dm_name
from csi.node.lvm import tags as volume_tags
from csi.node.lvm.model import Report
from csi.node.lvm.names import checked_id

_log = logging.getLogger(__name__)

_NAMES: Final = ("12-sealed-local.rules", "57-sealed-local.rules")
_UUID: Final = "-".join("?" * length for length in (8, 4, 4, 4, 12))
_PATTERNS: Final = ("pvc-*", "sl-*", f"*-{_UUID}")
"""Names that the provisioner and the driver give: any prefix with a UUID. Others are named one by one."""

_KUBELETS: Final = (
    "plugins/kubernetes.io/csi/volumeDevices/*",
    "pods/*/volumeDevices/*",
    "pods/*/volumes/kubernetes.io~csi/*/mount",
)
"""Where kubelet finds the device of a raw block volume, whichever driver's: no pod's content is for the host's links."""

_UNSAFE: Final = frozenset('"*?[]|\\ ')
_HEAD: Final = """# Written by sealed-local: tenants write on these devices, so nothing on them is looked at for the host.
SUBSYSTEM!="block", GOTO="sealed_local_end"
ACTION=="remove", GOTO="sealed_local_end"
"""
_READ_SECONDS: Final = 3.5
"""udev looks at most every three seconds whether its rules have changed, and then only when an event comes."""
_TAIL: Final = 'LABEL="sealed_local_end"\n'
_KEEP_OFF: Final = (
    'ENV{DM_UDEV_DISABLE_DISK_RULES_FLAG}="1", ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", '
    'ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1", ENV{UDISKS_IGNORE}="1"'
)


def text(groups: Iterable[str], volumes: Iterable[str], kubelet: str) -> str:
    """The rules for volumes in these groups, by the usual names and by these, for what lies on top of them, and for the
    loop devices that kubelet puts on raw block volumes.
    """
    names = [(vg, name) for vg in sorted(set(groups)) for name in (*_PATTERNS, *sorted(set(volumes)))]
    mapped = [dm_name.encode(vg, name) for vg, name in names]
    lines = [f'KERNEL=="dm-*", ATTR{{dm/uuid}}=="LVM-*", ATTR{{dm/name}}=="{name}", {_KEEP_OFF}\n' for name in mapped]
    lines += [
        f'KERNEL=="dm-*", ATTR{{dm/uuid}}=="part*-LVM-*", ATTR{{dm/name}}=="{name}*", {_KEEP_OFF}\n' for name in mapped
    ]
    # A loop device shows the path by which kubelet opened it; its partitions have it for their parent.
    backing = [f"/dev/{vg}/{name}" for vg, name in names] + [f"/dev/mapper/{name}" for name in mapped]
    if not _UNSAFE & set(kubelet):
        backing += [f"{kubelet}/{below}" for below in _KUBELETS]
    lines += [f'KERNEL=="loop*", ATTRS{{loop/backing_file}}=="{path}", {_KEEP_OFF}\n' for path in backing]
    return _HEAD + "".join(lines) + _TAIL


def is_usual(name: str) -> bool:
    """Whether a volume's name is one of those that the rules know without being told."""
    parts = name.rsplit("-", 5)[1:]
    return name.startswith(("pvc-", "sl-")) or [len(part) for part in parts] == [8, 4, 4, 4, 12]


def put(content: str, folder: Path) -> int | None:
    """Put the rules in place where they differ; udev notices that by itself. Returns how many files were written, None
    where the host has no udev.
    """
    if not folder.parent.is_dir():
        return None
    folder.mkdir(exist_ok=True)
    written, wanted = 0, content.encode(errors="surrogateescape")
    for name in _NAMES:
        path = folder / name
        if not path.exists() or path.read_bytes() != wanted:
            # A name that doesn't end in .rules is no rule.
            temporary = folder / f".{name}.new"
            files.write_atomic(path, wanted, mode=0o644, temporary=temporary, durable=False)
            _log.info("udev rules written", extra={"path": str(path)})
            written += 1
    return written


class UdevRules:
    """The rules of this node: written anew when a group or an unusual name comes."""

    def __init__(
        self,
        config: NodeConfig,
        kubelet: str,
        folder: Path = Path("/run/udev/rules.d"),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._kubelet = kubelet
        self._folder = folder
        self._lock = threading.Lock()
        self._groups = {vg for pool in config.pools for vg in pool.vgs}
        self._volumes: set[str] = set()
        self._told = False
        self._sleep = sleep
        self._read_at = 0.0
        """When udev will have read what was written last."""

    def note(self, report: Report) -> None:
        """Cover what a report shows: groups that the configuration allows by a pattern, volumes of unusual names."""
        groups = {vg.name for vg in report.vgs if self._config.allows(vg.name)}
        self._cover(
            groups, {volume.volume_id for volume in volume_tags.volumes(report) if not is_usual(volume.volume_id)}
        )

    def cover(self, volume_id: str) -> None:
        """Cover a volume before its device appears; returns when udev keeps to the rules."""
        try:
            checked = checked_id(volume_id)
        except SealedLocalError:
            return
        if not is_usual(checked):
            self._cover(set(), {checked})
        left = self._read_at - time.monotonic()
        if left > 0:
            self._sleep(left)

    def _cover(self, groups: set[str], volumes: set[str]) -> None:
        with self._lock:
            self._groups |= groups
            self._volumes |= volumes
            try:
                placed = put(text(self._groups, self._volumes, self._kubelet), self._folder)
                if placed:
                    self._read_at = time.monotonic() + _READ_SECONDS
                if placed is None and not self._told:
                    _log.warning(
                        "no udev is in sight: if the host has one, its links may lead to tenants' volumes; mount its "
                        "/run/udev/rules.d",
                        extra={"path": str(self._folder)},
                    )
                self._told = True
            except OSError as error:
                _log.warning("udev rules can't be written", extra={"path": str(self._folder), "error": str(error)})
