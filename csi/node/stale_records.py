"""Kata records that nobody needs any more: their pod is gone, and no guest has the device. A live one is never dropped.

A live record that vanished would make the pod's next container start on the host's empty directory.
"""

import logging
import os
from pathlib import Path

from csi.core.errors import SealedLocalError
from csi.core.mount import Mount
from csi.node import observe
from csi.node.kata.registry import Entry, KataRegistry
from csi.node.lvm.names import VolumeId
from csi.node.plan.node_view import PathKind

_log = logging.getLogger(__name__)


def dropped(
    registry: KataRegistry, entries: tuple[Entry, ...], listed: tuple[Mount, ...], volume_id: VolumeId, *, held: bool
) -> tuple[Entry, ...]:
    """The entries that are left after those of the volume that nobody needs were taken away."""
    left = []
    for entry in entries:
        ours = entry.record is not None and entry.record.volume_id == volume_id
        if ours and not held and is_left_behind(entry.target, listed):
            remove(registry, entry.target, volume_id)
        else:
            left.append(entry)
    return tuple(left)


def is_left_behind(target: str, listed: tuple[Mount, ...]) -> bool:
    """Whether neither the target nor kubelet's directory of its pod is there. A path that can't be looked at is there."""
    try:
        return observe.path(target, listed).kind is PathKind.ABSENT and not _pod_exists(target)
    except SealedLocalError as doubt:
        _log.warning("Kata record left as it is", extra={"target": target, "error": str(doubt)})
        return False


def remove(registry: KataRegistry, target: str, volume_id: str) -> None:
    """Take one away, and say so."""
    registry.remove(target)
    _log.info("stale Kata record removed", extra={"target": target, "volume_id": volume_id})


def _pod_exists(target: str) -> bool:
    """Whether kubelet's directory of the pod, three levels above `volumes/<plugin>/<pv>/mount`, is still there."""
    parents = Path(target).parents
    return len(parents) > 3 and os.path.isdir(parents[3])  # noqa: PTH112
