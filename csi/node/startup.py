"""What the node plugin does once when it starts: find LVM, bring pool disks in, drop stale Kata records, resume jobs."""

import logging
import os
from pathlib import Path

from csi.core import disks, filesystems
from csi.core.command import Runner
from csi.core.errors import SealedLocalError
from csi.node import erasing, observe
from csi.node.config import Pool
from csi.node.desk import Desk, Surroundings
from csi.node.lvm.model import Report
from csi.node.lvm.names import VolumeId
from csi.node.plan import pools, provision
from csi.node.plan.node_view import PathKind

_log = logging.getLogger(__name__)


def start(desk: Desk) -> tuple[str, ...]:
    """Carry out the start-up. Returns the pools that could not be completed, one reason each; the others work.

    Raises `ToolFailed` when LVM itself does not answer.
    """
    with desk.lvm.exclusive("start-up"):
        _log.info("lvm", extra={"version": desk.lvm.version()})
        problems = tuple(
            problem for pool in desk.settings.config.pools if (problem := _bring_in(desk, pool)) is not None
        )
        report = desk.lvm.report()
        sweep(desk, report)
        erasing.resume(desk, report)
    return problems


def _bring_in(desk: Desk, pool: Pool) -> str | None:
    """One bad disk stops its own pool only."""
    if not pool.devices:
        return None
    try:
        report = desk.lvm.report()
        desk.carry_out(pools.onboard(pool, report, tuple(_look(desk.runner, device) for device in pool.devices)))
    except (SealedLocalError, OSError) as error:
        _log.error("pool is not complete", extra={"pool": pool.name, "error": str(error)})
        return str(error)
    return None


def _look(runner: Runner, configured: str) -> pools.DeviceView:
    real = disks.resolved(configured)
    if real is None:
        return pools.DeviceView(configured=configured, real=None, holds=None)
    holds = filesystems.signature(runner, real)
    if holds is None and not disks.edges_blank(real):
        holds = "unknown data"
    return pools.DeviceView(configured=configured, real=real, holds=holds, number=disks.number(real))


def sweep(desk: Desk, report: Report) -> None:
    """Drop records of our volumes whose target is gone and whose device nobody holds; a live one is never dropped.

    A live record that vanished would make the pod's next container start on the host's empty directory.
    """
    around = desk.surroundings()
    for entry in around.entries:
        volume_id = entry.record.volume_id if entry.record is not None else None
        if volume_id is None:
            continue
        try:
            stale = _is_stale(report, around, entry.target, volume_id)
        except SealedLocalError as doubt:
            # One volume in doubt keeps its record; the node serves the others.
            _log.warning("Kata record left as it is", extra={"target": entry.target, "error": str(doubt)})
            continue
        if stale:
            desk.registry.remove(entry.target)
            _log.info("stale Kata record removed", extra={"target": entry.target, "volume_id": volume_id})


def _is_stale(report: Report, around: Surroundings, target: str, volume_id: str) -> bool:
    volume = provision.by_id(report, VolumeId(volume_id))
    seen = observe.alive(volume).live if volume is not None else None
    held = seen is not None and seen.is_open
    return not held and around.path(target).kind is PathKind.ABSENT and not _pod_exists(target)


def _pod_exists(target: str) -> bool:
    """Whether kubelet's directory of the pod, three levels above `volumes/<plugin>/<pv>/mount`, is still there."""
    parents = Path(target).parents
    return len(parents) > 3 and os.path.isdir(parents[3])  # noqa: PTH112
