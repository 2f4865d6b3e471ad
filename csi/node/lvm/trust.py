"""Which groups of a name are this node's own: by their disks or by their UUID, never by the name alone.

Whoever can write to a disk that this node sees can write an LVM label with any name, tags and volumes on it. A group
that is not the node's own is a stranger: it is left out of every plan, and its disks out of every command's sight, so that
a group of its name goes on living.
"""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from csi.core.device_number import DeviceNumber
from csi.node.lvm import tags
from csi.node.lvm.model import Report, Stranger, VolumeGroup

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Memory:
    """UUIDs of groups by their names. `keep` makes them last; `kept` says whether it has done so."""

    uuids: dict[str, str] = field(default_factory=dict)
    keep: Callable[[Mapping[str, str]], None] = lambda _: None
    kept: bool = True
    _told: bool = False

    def note(self, name: str, uuid: str) -> bool:
        """Whether that is new."""
        if self.uuids.get(name) == uuid:
            return False
        self.uuids[name] = uuid
        self.kept = False
        return True

    def forget(self, uuid: str) -> None:
        """Under whatever name."""
        left = {name: other for name, other in self.uuids.items() if other != uuid}
        if len(left) < len(self.uuids):
            self.uuids, self.kept = left, False

    def settle(self) -> None:
        """Make last what doesn't yet. Where that fails it is tried again at the next report: volumes of a group that is
        used must not wait for another disk that is full.
        """
        if self.kept:
            return
        try:
            self.keep(self.uuids)
        except OSError as error:
            if not self._told:
                _log.error("can't remember the groups of this node; it is tried again", extra={"error": str(error)})
            self._told = True
        else:
            self.kept, self._told = True, False


@dataclass(slots=True, kw_only=True)
class Trust:
    """`uuids` are confirmed by the configuration: where it names any, no other group is trusted. `pool_disks` are the disks
    of a group whose pool names disks, else None. `pins` are the UUIDs at first sight, `used` those of the groups in which a
    volume of this driver was when they were seen last.
    """

    uuids: Mapping[str, str] = field(default_factory=dict)
    pool_disks: Callable[[str], Collection[DeviceNumber] | None] = lambda _: None
    pins: Memory = field(default_factory=Memory)
    used: Memory = field(default_factory=Memory)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _told: set[str] = field(default_factory=set)
    _begun: set[str] = field(default_factory=set)
    """UUIDs of groups in which a volume is being made that nobody has seen yet."""

    def separate(self, report: Report) -> Report:
        """The report with its strangers apart. A group that is alone with its name is pinned at first sight."""
        with self._lock:
            found = [(vg, self._why_strange(vg, report)) for vg in report.vgs]
            for vg, why in found:
                if why and vg.uuid not in self._told:
                    self._told.add(vg.uuid)
                    _log.warning("a volume group is not used", extra={"vg": vg.name, "uuid": vg.uuid, "error": why})
                if not why and vg.name not in report.ambiguous:
                    self._look_for_use(vg)
            self.pins.settle()
            self.used.settle()
        own = tuple(vg for vg, why in found if not why)
        strangers = tuple(Stranger(vg=vg, why=why) for vg, why in found if why)
        return replace(report, vgs=own, strangers=strangers)

    def use(self, vg: VolumeGroup) -> None:
        """A volume is about to be made there: no power cut may come between it and the memory of its group."""
        with self._lock:
            self._begun.add(vg.uuid)
            self.used.note(vg.name, vg.uuid)
            self.used.settle()

    @property
    def known(self) -> Mapping[str, str]:
        """UUIDs by names of the groups in which a volume of this driver was when they were seen last, whether their disks
        are here or not. Not those that hold none, as somebody's disk that came and went may, nor those that are confirmed
        only: one configuration may confirm the groups of several nodes.
        """
        with self._lock:
            return dict(self.used.uuids)

    def _look_for_use(self, vg: VolumeGroup) -> None:
        """A group that is here and holds no volume of ours any more may go: nothing can be left in it."""
        if any(map(tags.was_ours, vg.lvs)):
            self.used.note(vg.name, vg.uuid)
            self._begun.discard(vg.uuid)
        elif vg.uuid not in self._begun:
            self.used.forget(vg.uuid)

    def _why_strange(self, vg: VolumeGroup, report: Report) -> str:
        """Empty for a group of this node."""
        disks = self.pool_disks(vg.name)
        if disks is not None:
            foreign = not any(pv.device in disks for pv in vg.pvs if pv.device is not None)
            return "it lies on none of the disks that its pool names" if foreign else ""
        if self.uuids:
            return self._why_not_confirmed(vg)
        return self._why_not_pinned(vg, report)

    def _why_not_confirmed(self, vg: VolumeGroup) -> str:
        confirmed = self.uuids.get(vg.name)
        if confirmed is None:
            return f"vgUuids in the node's configuration lacks it; if it is this node's own, add {vg.name}: {vg.uuid}"
        if confirmed != vg.uuid:
            return f"vgUuids in the node's configuration says {confirmed}"
        # Should the configuration no longer confirm any, it is still this one that is meant.
        self._pin(vg)
        return ""

    def _why_not_pinned(self, vg: VolumeGroup, report: Report) -> str:
        pinned = self.pins.uuids.get(vg.name)
        if pinned is None and sum(other.name == vg.name for other in report.vgs) == 1:
            self._pin(vg)
        if pinned in (None, vg.uuid):
            return ""
        return (
            f"the group of this name that was used before has UUID {pinned}; if this one is the node's own now, confirm "
            f"it: vgUuids: {{{vg.name}: {vg.uuid}}} in the node's configuration"
        )

    def _pin(self, vg: VolumeGroup) -> None:
        if self.pins.note(vg.name, vg.uuid):
            _log.info("a volume group is used for the first time", extra={"vg": vg.name, "uuid": vg.uuid})
