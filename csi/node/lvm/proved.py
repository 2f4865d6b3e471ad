"""A report that is proved to be current, not one that is young: LVM is asked only about groups whose disks changed.

The proof is what `disk_view` sees: a group's change is committed by new headers of its metadata areas, whoever makes it.
What LVM said of a group stays right as long as its disks look the same. When only headers changed, the new text is read,
if this reader has understood the group's text exactly as LVM did before; in every other case LVM is asked about this group.
No group waits for another one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from csi.core.errors import SealedLocalError
from csi.node.lvm import metadata_model
from csi.node.lvm.block_devices import BlockDevice
from csi.node.lvm.disk_view import DiskView, DiskViews
from csi.node.lvm.metadata_area import NotUnderstood
from csi.node.lvm.metadata_model import Remembered
from csi.node.lvm.model import ForeignGroup, LogicalVolume, PhysicalVolume, Report, UnreadableGroup, VolumeGroup

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS: Final = 5.0
"""How old a question about a group may get while reports wait for its answer; then the group is unreadable, and the others
are served without a further wait. LVM takes seconds for a crowded group on a busy machine.
"""

Known = tuple[VolumeGroup, ...]
"""What is known of a name: one group, or several of the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What is known of a group as long as its disks look like `views`."""

    views: tuple[DiskView, ...]
    began: float
    known: Known
    plain: bool
    """Whether this reader understood the text as LVM did."""

    @property
    def members(self) -> frozenset[str]:
        return frozenset(pv.uuid for vg in self.known for pv in vg.pvs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """A question to LVM."""

    views: tuple[DiskView, ...]
    began: float
    answer: "Future[Known | UnreadableGroup]"

    def tells(self, views: tuple[DiskView, ...], arrived: float) -> bool:
        """Whether the answer is right for somebody who came then and saw the disks like this."""
        return self.began >= arrived or self.views == views


@dataclass(slots=True)
class _Group:
    name: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    entry: _Entry | None = None
    asking: _Asking | None = None
    late: bool = False
    """LVM didn't answer in time, and has neither told of it since nor failed in time: nobody waits for it."""
    volumes: Remembered = field(default_factory=dict)
    changed_at: float = 0.0
    """When the last change of ours began."""

    @property
    def lvs(self) -> tuple[LogicalVolume, ...] | None:
        """What it holds for sure, where nobody can look into it any more."""
        if self.entry is None or self.entry.began <= self.changed_at:
            return None
        return tuple(lv for vg in self.entry.known for lv in vg.lvs)


class _Wait(NamedTuple):
    """A question about a group whose disks look like this, that may not be answered yet."""

    group: _Group
    views: tuple[DiskView, ...]
    asking: _Asking


class ProvedReport:
    """The report of this node. `ask` is LVM's own word on one group, by name: it may take long, and raise."""

    def __init__(
        self,
        devices: Callable[[], Sequence[BlockDevice]],
        views: DiskViews,
        allows: Callable[[str], bool],
        ask: Callable[[str, int], Known],
    ) -> None:
        self._devices = devices
        self._views = views
        self._allows = allows
        self._ask = ask
        self._lock = threading.Lock()
        self._groups: dict[str, _Group] = {}
        self.frozen: tuple[BlockDevice, ...] = ()
        """Disks that did not answer at the last look: no LVM command may look at them."""
        self.silent: tuple[BlockDevice, ...] = ()
        """Those among them of which nobody knows whose they are: they have never answered this process."""

    def report(self) -> Report:
        """All groups that the configuration can mean, as they are now. Never waits long for one of them."""
        arrived = time.monotonic()
        views = self._views.settled(self._devices())
        self.frozen = tuple(view.device for view in views if view.frozen)
        by_name = self._attributed(views)
        # All are asked before any is waited for, so that several that don't answer cost one wait.
        begun = [self._current(group, disks, arrived) for group, disks in by_name]
        found = [self._without_doubt(self._end(one, arrived)) for one in begun]
        known = [vg for answer in found if not isinstance(answer, UnreadableGroup) for vg in answer]
        return Report(
            vgs=tuple(sorted(known, key=lambda vg: (vg.name, vg.uuid))),
            unused=_unused(views),
            unreadable=tuple(answer for answer in found if isinstance(answer, UnreadableGroup)),
            foreign=self._foreign(views),
        )

    def changes(self, name: str) -> None:
        """A change of ours begins: should the group become unreadable, what was seen in it before is no longer sure."""
        with self._lock:
            if name in self._groups:
                self._groups[name].changed_at = time.monotonic()

    def _without_doubt(self, answer: Known | UnreadableGroup) -> Known | UnreadableGroup:
        """A disk that is missing may be one that doesn't answer: LVM would record it as gone with the next change."""
        if isinstance(answer, UnreadableGroup) or not self.frozen or not any(vg.missing_disks for vg in answer):
            return answer
        silent = ", ".join(disk.path for disk in self.frozen)
        disks = tuple(pv.name for vg in answer for pv in vg.pvs)
        return UnreadableGroup(
            name=answer[0].name, disks=disks, why=f"a disk of it is missing, and {silent} does not answer"
        )

    def _attributed(self, views: Sequence[DiskView]) -> list[tuple[_Group, tuple[DiskView, ...]]]:
        """Every group with its disks: those whose text names it, and those that are known to be its."""
        with self._lock:
            for view in views:
                if view.group is not None and self._allows(view.group.name):
                    self._groups.setdefault(view.group.name, _Group(view.group.name))
            found = [(group, tuple(view for view in views if _belongs(view, group))) for group in self._groups.values()]
            # A group whose disks all went away or hold something else now is no more.
            self._groups = {group.name: group for group, disks in found if disks}
        known = {view.device.number for _, disks in found for view in disks}
        self.silent = tuple(view.device for view in views if view.frozen and view.device.number not in known)
        return [(group, disks) for group, disks in found if disks]

    def _current(self, group: _Group, views: tuple[DiskView, ...], arrived: float) -> "Known | UnreadableGroup | _Wait":
        """What is known of the group without waiting, or whom to wait for. One group's fault is no other's."""
        lost = _why_lost(group, views)
        if lost is not None:
            return lost
        try:
            with group.lock:
                return self._known(group, views, arrived) or _Wait(group, views, self._asking(group, views, arrived))
        except Exception as error:
            return _failed(group, views, error)

    def _known(self, group: _Group, views: tuple[DiskView, ...], arrived: float) -> Known | None:
        entry = group.entry
        if entry is None or entry.views == views or entry.began >= arrived:
            return entry.known if entry is not None else None
        read = self._read(group, entry, views)
        if read is None:
            return None
        group.entry = _Entry(views=views, began=arrived, known=(read,), plain=True)
        return (read,)

    def _asking(self, group: _Group, views: tuple[DiskView, ...], arrived: float) -> _Asking:
        asking = group.asking
        if asking is None or (asking.answer.done() and asking.began < arrived):
            asking = group.asking = self._start(group, views)
        return asking

    def _end(self, begun: "Known | UnreadableGroup | _Wait", arrived: float) -> Known | UnreadableGroup:
        while isinstance(begun, _Wait):
            group, views, asking = begun
            # Whoever comes later doesn't wait anew for what has not been answered in time.
            left = 0.0 if group.late else asking.began + _PATIENCE_SECONDS - time.monotonic()
            try:
                answer = asking.answer.result(max(0.0, left))
            except TimeoutError:
                group.late = not asking.answer.done()
                waited = f"LVM did not answer within {_PATIENCE_SECONDS:g} s when asked about it"
                return _unreadable(group, views, f"{waited}; does another LVM command hold its lock?")
            # What was asked before the group changed says nothing of the change.
            begun = answer if asking.tells(views, arrived) else self._current(group, views, arrived)
        return begun

    def _read(self, group: _Group, entry: _Entry, views: tuple[DiskView, ...]) -> VolumeGroup | None:
        """The group by its new text; None when LVM has to say more than the text does."""
        if not entry.plain or [view.frame for view in entry.views] != [view.frame for view in views]:
            return None
        try:
            return self._understood(group, entry.known[0], views)
        except NotUnderstood:
            return None

    def _understood(self, group: _Group, known: VolumeGroup, views: Sequence[DiskView]) -> VolumeGroup:
        """Raises `NotUnderstood` unless all areas of all disks hold one text, and it is plain."""
        places = [(view, place) for view in views for place in view.texts]
        texts = {self._views.text(view, place) for view, place in places}
        if len(texts) != 1:
            raise NotUnderstood(f"the disks of group {known.name} hold different texts")
        (text,) = texts
        room = min(place.room for _, place in places) - max(place.size for _, place in places)
        found, group.volumes = metadata_model.volume_group(text, known, group.volumes)
        return metadata_model.with_room(found, max(0, room))

    def _start(self, group: _Group, views: tuple[DiskView, ...]) -> _Asking:
        """Ask LVM in a thread of its own: it may hang at a lock or a disk, and whoever waits must not."""
        asking = _Asking(views=views, began=time.monotonic(), answer=Future())

        def work() -> None:
            answer: Known | UnreadableGroup
            try:
                answer = self._asked(group, views, asking.began)
            except Exception as error:
                answer = _failed(group, views, error)
            in_time = time.monotonic() <= asking.began + _PATIENCE_SECONDS
            if in_time or not isinstance(answer, UnreadableGroup):
                group.late = False
            asking.answer.set_result(answer)

        threading.Thread(target=work, name=f"look at {group.name}", daemon=True).start()
        return asking

    def _asked(self, group: _Group, views: tuple[DiskView, ...], began: float) -> Known | UnreadableGroup:
        known = self._ask(group.name, len({view.group.uuid for view in views if view.group is not None}))
        if not known:
            return _unreadable(
                group, views, "LVM does not show it, though its disks are here; look with `vgs` and `pvs`"
            )
        after = tuple(self._views.look([view.device for view in views]))
        if after == views:
            entry = _Entry(views=views, began=began, known=known, plain=self._is_plain(group, known, views))
            with group.lock:
                group.entry = entry
        return known

    def _is_plain(self, group: _Group, known: Known, views: Sequence[DiskView]) -> bool:
        disks = sorted((view.label.pv_uuid, view.device.number.combined) for view in views if view.label is not None)
        if len(known) != 1 or len(disks) != len(views):
            return False
        if disks != sorted((pv.uuid, pv.device.combined if pv.device is not None else -1) for pv in known[0].pvs):
            return False
        try:
            understood = self._understood(group, known[0], views)
            return metadata_model.with_room(understood, known[0].metadata_free_bytes) == known[0]
        except NotUnderstood:
            return False

    def _foreign(self, views: Iterable[DiskView]) -> tuple[ForeignGroup, ...]:
        others = [view for view in views if view.group is not None and not self._allows(view.group.name)]
        names = {view.group for view in others if view.group is not None}
        return tuple(
            ForeignGroup(
                name=name.name,
                uuid=name.uuid,
                disks=tuple(view.device.number for view in others if view.group == name),
            )
            for name in sorted(names, key=lambda name: (name.name, name.uuid))
        )


def _belongs(view: DiskView, group: _Group) -> bool:
    if view.group is not None:
        return view.group.name == group.name
    if group.entry is None:
        return False
    if view.label is not None:
        return view.label.pv_uuid in group.entry.members
    return bool(view.trouble) and any(view.device == known.device for known in group.entry.views)


def _why_lost(group: _Group, views: Sequence[DiskView]) -> UnreadableGroup | None:
    """Where no command of LVM would help: a disk that freezes it, or nothing left that could be read."""
    frozen = [view.trouble for view in views if view.frozen]
    if frozen:
        return _unreadable(group, views, "; ".join(frozen))
    if not any(view.group is not None for view in views):
        return _unreadable(group, views, "; ".join(view.why_silent for view in views if view.why_silent))
    return None


def _unreadable(group: _Group, views: Sequence[DiskView], why: str) -> UnreadableGroup:
    return UnreadableGroup(name=group.name, disks=tuple(view.device.path for view in views), why=why, lvs=group.lvs)


def _failed(group: _Group, views: Sequence[DiskView], error: Exception) -> UnreadableGroup:
    """A group that something went wrong with: the process has no descriptor left, a disk of the driver's own is full."""
    if isinstance(error, OSError):
        _log.error("a volume group can't be looked into", extra={"vg": group.name, "error": str(error)})
    elif not isinstance(error, SealedLocalError):
        _log.error(
            "a volume group can't be looked into", extra={"vg": group.name, "error": repr(error)}, exc_info=error
        )
    return _unreadable(group, views, str(error))


def _unused(views: Sequence[DiskView]) -> tuple[PhysicalVolume, ...]:
    uuids = [view.label.pv_uuid for view in views if view.label is not None]
    return tuple(
        PhysicalVolume(
            name=view.device.path,
            uuid=view.label.pv_uuid,
            extents=0,
            free_extents=0,
            allocatable=False,
            missing=False,
            device=view.device.number,
        )
        for view in views
        if view.is_unused and view.label is not None and uuids.count(view.label.pv_uuid) == 1
    )
