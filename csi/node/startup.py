"""What the node plugin does when it starts, and again while something lacks: find LVM, bring pool disks in, drop stale Kata
records, go on with deletions.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final

from csi.core import disks, filesystems
from csi.core.errors import NotFound, Refused, SealedLocalError
from csi.node import erasing, observe, stale_records
from csi.node.config import Pool
from csi.node.desk import Desk, Surroundings
from csi.node.disk_probes import DiskProbes
from csi.node.lvm.model import Report
from csi.node.lvm.names import VolumeId
from csi.node.plan import pools, provision
from csi.node.standing import Standing

_log = logging.getLogger(__name__)
_MEMBER: Final = "LVM2_member"
_TURN_SECONDS: Final = 30.0
"""How long a pool waits for its group, before the next pool is looked at."""


class Startup:
    """What has to be done until the node works, and again whenever something has changed: see `attempt`.

    `note` is told each report, before anything is done with it.
    """

    def __init__(self, desk: Desk, standing: Standing, note: Callable[[Report], None] = lambda _: None) -> None:
        self._desk = desk
        self._note = note
        self._standing = standing
        self._probes = DiskProbes(lambda device: _holds(desk, device))
        self._version = ""
        self._groups: frozenset[str] | None = None

    def attempt(self) -> bool:
        """Look at everything once, do what can be done, note it. Returns whether nothing is left to be tried again.

        One pool that fails stops no other, and LVM that fails is asked again the next time.
        """
        self._standing.look()
        try:
            self._find_lvm()
            doubt = self._doubt()
            for pool in self._desk.settings.config.pools:
                self._standing.pool(pool.name, doubt or bring_in(self._desk, self._probes, pool))
            self._take_over(self._desk.lvm.report())
        except Exception as error:
            self._standing.lvm(str(error) or type(error).__name__)
            _log.debug("start-up failed", exc_info=error)
            return False
        if doubt is None:
            self._standing.lvm(None)
        self._standing.started()
        if doubt is not None:
            # Told of a driver that has started, so that Probe doesn't have it killed: volumes are taken down all the same.
            self._standing.lvm(doubt)
        return self._standing.whole

    def _doubt(self) -> str | None:
        """Why nobody can tell which groups are this node's own; None when that is known."""
        try:
            _ = self._desk.lvm.known_groups
        except Refused as error:
            return str(error)
        return None

    def _find_lvm(self) -> None:
        if not self._version:
            self._version = self._desk.lvm.version()
            _log.info("lvm", extra={"version": self._version})

    def _take_over(self, report: Report) -> None:
        """What an earlier process of the driver has left, once; what lies in a group that comes late, when it is there."""
        self._note(report)
        groups = frozenset(vg.name for vg in report.vgs)
        if self._groups is None:
            sweep(self._desk, report)
        if self._groups is None or groups - self._groups:
            erasing.resume(self._desk, report)
            self._groups = groups | (self._groups or frozenset())


def bring_in(desk: Desk, probes: DiskProbes, pool: Pool) -> str | None:
    """Bring a pool's disks in, as far as they are not. Returns what the pool lacks; None when it is whole."""
    try:
        with desk.lvm.turns.group(pool.vgs[0], f"pool {pool.name}", _TURN_SECONDS) if pool.devices else nullcontext():
            _require_one_pool(desk.settings.config.pools, pool)
            report = desk.lvm.report()
            views = _looked_at(probes, report, pool)
            desk.carry_out(pools.onboard(pool, report, views))
        _require_groups(desk.lvm.report(), pool)
    except (SealedLocalError, OSError) as error:
        return str(error)
    return None


def _require_one_pool(all_pools: tuple[Pool, ...], pool: Pool) -> None:
    """Raises `Refused` when a disk is in another pool, too, by another name of it."""
    own = {disks.leads_to(device): device for device in pool.devices}
    for other in all_pools:
        for device in other.devices:
            number = disks.leads_to(device)
            if other is not pool and number is not None and number in own:
                raise Refused(
                    f"pool {pool.name}: {own[number]} is the same disk as {device} of pool {other.name}; name it once"
                )


def _require_groups(report: Report, pool: Pool) -> None:
    """Raises `NotFound` when a group of the pool isn't there, `Refused` when one of its name is not this node's, and what
    `Report.vg` raises.
    """
    strange = [stranger.said for vg in pool.vgs for stranger in report.strangers_of(vg)]
    if strange:
        raise Refused(f"pool {pool.name}: {'; '.join(strange)}")
    missing = [vg for vg in pool.vgs if report.vg(vg) is None]
    if missing:
        raise NotFound(
            f"pool {pool.name}: there is no volume group {', '.join(missing)}; make it, or correct the configuration"
        )


def _looked_at(probes: DiskProbes, report: Report, pool: Pool) -> tuple[pools.DeviceView, ...]:
    """The pool's disks. Raises as `DiskProbes.ask` does."""
    vg = report.vg(pool.vgs[0])
    members = {pv.device for pv in vg.pvs} if vg is not None else set()
    found = [(configured, disks.resolved(configured)) for configured in pool.devices]
    numbers = {real: disks.number(real) for _, real in found if real is not None}
    # Looked at again and again, a member needn't be read: LVM has done so.
    holds: dict[str, str | None] = {real: _MEMBER for real, number in numbers.items() if number in members}
    holds |= probes.ask([real for real in numbers if real not in holds])
    return tuple(
        pools.DeviceView(configured=configured, real=None, holds=None)
        if real is None
        else pools.DeviceView(configured=configured, real=real, holds=holds[real], number=numbers[real])
        for configured, real in found
    )


def _holds(desk: Desk, device: str) -> str | None:
    """A signature, or words for other content; None for a blank disk."""
    found = filesystems.signature(desk.runner, device)
    return "unknown data" if found is None and not disks.edges_blank(device) else found


def sweep(desk: Desk, report: Report) -> None:
    """Drop records of our volumes whose target is gone and whose device nobody holds; a live one is never dropped."""
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
            stale_records.remove(desk.registry, entry.target, volume_id)


def _is_stale(report: Report, around: Surroundings, target: str, volume_id: str) -> bool:
    volume = provision.by_id(report, VolumeId(volume_id))
    seen = observe.alive(volume, report).live if volume is not None else None
    held = seen is not None and seen.is_open
    return not held and stale_records.is_left_behind(target, around.mounts)
