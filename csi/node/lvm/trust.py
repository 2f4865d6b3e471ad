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
from csi.node.lvm.model import Report, Stranger, VolumeGroup

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Trust:
    """`uuids` are confirmed by the configuration: where it names any, no other group is trusted. `pool_disks` are the disks
    of a group whose pool names disks, else None. `pins` are the UUIDs at first use; `keep` makes them last.
    """

    uuids: Mapping[str, str] = field(default_factory=dict)
    pool_disks: Callable[[str], Collection[DeviceNumber] | None] = lambda _: None
    pins: dict[str, str] = field(default_factory=dict)
    keep: Callable[[Mapping[str, str]], None] = lambda _: None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _told: set[str] = field(default_factory=set)

    def separate(self, report: Report) -> Report:
        """The report with its strangers apart. A group that is alone with its name is pinned at its first use."""
        with self._lock:
            found = [(vg, self._why_strange(vg, report)) for vg in report.vgs]
            for vg, why in found:
                if why and vg.uuid not in self._told:
                    self._told.add(vg.uuid)
                    _log.warning("a volume group is not used", extra={"vg": vg.name, "uuid": vg.uuid, "error": why})
        own = tuple(vg for vg, why in found if not why)
        strangers = tuple(Stranger(vg=vg, why=why) for vg, why in found if why)
        return replace(report, vgs=own, strangers=strangers)

    @property
    def known(self) -> frozenset[str]:
        """Names of the groups that this node has used, whether their disks are here or not. Not those that are confirmed
        only: one configuration may confirm the groups of several nodes.
        """
        with self._lock:
            return frozenset(self.pins)

    def _why_strange(self, vg: VolumeGroup, report: Report) -> str:
        """Empty for a group of this node."""
        disks = self.pool_disks(vg.name)
        if disks is not None:
            foreign = not any(pv.device in disks for pv in vg.pvs if pv.device is not None)
            return "it lies on none of the disks that its pool names" if foreign else ""
        if self.uuids:
            confirmed = self.uuids.get(vg.name)
            if confirmed is None:
                return (
                    f"vgUuids in the node's configuration lacks it; if it is this node's own, add {vg.name}: {vg.uuid}"
                )
            return "" if confirmed == vg.uuid else f"vgUuids in the node's configuration says {confirmed}"
        return self._why_not_pinned(vg, report)

    def _why_not_pinned(self, vg: VolumeGroup, report: Report) -> str:
        pinned = self.pins.get(vg.name)
        if pinned is None and sum(other.name == vg.name for other in report.vgs) == 1:
            self.pins[vg.name] = vg.uuid
            self.keep(self.pins)
            _log.info("a volume group is used for the first time", extra={"vg": vg.name, "uuid": vg.uuid})
        if pinned in (None, vg.uuid):
            return ""
        return (
            f"the group of this name that was used before has UUID {pinned}; if this one is the node's own now, confirm "
            f"it: vgUuids: {{{vg.name}: {vg.uuid}}} in the node's configuration"
        )
