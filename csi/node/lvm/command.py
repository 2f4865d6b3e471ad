"""LVM by its command line: one function a verb, one command a group at a time, and a report that is proved to be current.

LVM's own exit status 5 means nearly anything, so callers look first (`report`) and plan; an error here is one to show.
A command that writes is never ended because a caller lost patience: half-made volumes come from that.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from csi.core import disks
from csi.core.command import Runner
from csi.core.errors import CommandEnded, CommandError, InUse, Refused, SealedLocalError, ToolFailed, Unavailable
from csi.core.size import KIB, MIB
from csi.node.lvm import dm_name, failures, filters
from csi.node.lvm import report as lvm_report
from csi.node.lvm.block_devices import BlockDevice, BlockDevices
from csi.node.lvm.disk_reader import DiskReader
from csi.node.lvm.disk_view import DiskViews
from csi.node.lvm.filters import DeviceFilter
from csi.node.lvm.model import LogicalVolume, Report, UnreadableGroup, VolumeGroup
from csi.node.lvm.process import LvmProcess
from csi.node.lvm.proved import ProvedReport
from csi.node.lvm.trust import Trust
from csi.node.lvm.turns import Turns

_log = logging.getLogger(__name__)

_READ_SECONDS = 60.0
_NO_ORIGIN = 'lv_attr!~"^[oO]"'
"""The first letter of the attributes: `o` for an origin, `O` for one into which a snapshot is merged (lvs(8))."""
_WRITE_SECONDS = 600.0
_NO_FILTER: Final = DeviceFilter()

# The host must not activate a tenant's volume when it boots, and look for its own filesystems there.
_NO_AUTOACTIVATION: Final = ("--setautoactivation", "n")
_AUTOACTIVATION_SINCE: Final = (2, 3, 12)
_SKIP_ACTIVATION: Final = ("--setactivationskip", "y")
"""What older ones know: then `vgchange -ay` by hand passes the volume over, too."""

_REPORT = (
    "fullreport", "--reportformat", "json", "--units", "b", "--nosuffix",
    "--configreport", "vg", "-o", lvm_report.VG_FIELDS,
    "--configreport", "pv", "-o", lvm_report.PV_FIELDS,
    "--configreport", "lv", "-o", lvm_report.LV_FIELDS,
    "--configreport", "pvseg", "-o", lvm_report.PV_SEGMENT_FIELDS,
    "--configreport", "seg", "-o", "seg_start",
)  # fmt: skip


class Lvm:
    """LVM of this node, as far as `allows` and `device_filter` let it look. `turns` says who may change which group now."""

    def __init__(
        self,
        runner: Runner,
        *,
        udev: bool,
        lock_file: Path,
        device_filter: DeviceFilter = _NO_FILTER,
        allows: Callable[[str], bool] = lambda _: True,
        trust: Trust | None = None,
        devices: Callable[[], Sequence[BlockDevice]] | None = None,
        elsewhere: bool = False,
    ) -> None:
        self.turns = Turns(lock_file)
        self._allows = allows
        self._trust = trust or Trust()
        self._strange: tuple[str, ...] = ()
        self._inactive_at_boot: tuple[str, str] = _SKIP_ACTIVATION
        self._version = ""
        self._beginning = threading.Lock()
        self._process = LvmProcess(
            runner, udev=udev, device_filter=device_filter, state_dir=lock_file.parent, elsewhere=elsewhere
        )
        self._devices = devices or BlockDevices().now
        self._gates: dict[str, threading.Lock] = {}
        self._reader = DiskReader()
        self._proved = ProvedReport(self._visible, DiskViews(self._reader), allows, self._ask)

    def report(self) -> Report:
        """Every group that the configuration can mean, as it is now. Takes no turn, and no process while nothing changed.

        A group that can't be looked into is `unreadable` in it, and the others are there all the same. One that isn't this
        node's own is among its `strangers`.
        """
        report = self._with_lost(self._trust.separate(self._proved.report()))
        self._strange = tuple(pv.name for one in report.strangers for pv in one.vg.pvs if not pv.missing)
        return report

    def _with_lost(self, report: Report) -> Report:
        """The report, in which a group that was used and isn't here is unreadable while there is a disk that has not
        answered since the start: it may be that group's.
        """
        silent = tuple(device.path for device in self._proved.silent)
        if not silent:
            return report
        try:
            used = sorted(name for name in self.known_groups if self._allows(name))
        except Refused:
            return report  # nobody knows which were used, so every group is a stranger
        here = {vg.name for vg in report.vgs} | {group.name for group in report.unreadable}
        why = f"it is not here, and {', '.join(silent)}, which may be a disk of it, does not answer"
        lost = tuple(UnreadableGroup(name=name, disks=silent, why=why) for name in used if name not in here)
        return replace(report, unreadable=(*report.unreadable, *lost))

    @property
    def known_groups(self) -> Mapping[str, str]:
        """UUIDs by names of the groups in which this node has had volumes, whether they are here or not."""
        return self._trust.known

    def _visible(self) -> list[BlockDevice]:
        patterns = self._process.patterns()
        return [device for device in self._devices() if filters.takes(patterns, device.names)]

    def _ask(self, vg: str, groups: int) -> tuple[VolumeGroup, ...]:
        """LVM's own word on the groups of this name. A single one is asked for by name, so that no other one is locked."""
        argv = (*_REPORT, vg) if groups == 1 else _REPORT
        with self._gate(vg):
            said = lvm_report.parse(*self._process.said(argv, _READ_SECONDS, without=self._frozen()))
        known = tuple(found for found in said.vgs if found.name == vg)
        self._require_not_hidden(vg, {pv.uuid for found in known for pv in found.pvs if pv.missing})
        return known

    def _require_not_hidden(self, vg: str, missing: AbstractSet[str]) -> None:
        """Raises `Refused` when a disk that LVM misses is there, and the filter hides it.

        With the next change of the group LVM would record that disk as gone, and whoever sees it again would not get the
        volumes on it back by himself.
        """
        if not missing:
            return
        visible = {device.number for device in self._visible()}
        hidden = [device for device in self._devices() if device.number not in visible]
        labels = [(view.device.path, view.label) for view in DiskViews(self._reader).look(hidden)]
        found = [path for path, label in labels if label is not None and label.pv_uuid in missing]
        if found:
            raise Refused(
                f"{', '.join(found)} belongs to volume group {vg}, and the configuration keeps LVM away from it. Name it "
                "in the pool's `devices`, or take it out of the group (pvmove, then vgreduce)"
            )

    def _hidden(self) -> list[str]:
        return [*self._frozen(), *self._strange]

    def _frozen(self) -> list[str]:
        return [name for device in self._proved.frozen for name in device.names]

    def create(
        self,
        vg: str,
        name: str,
        *,
        extents: int,
        tags: Sequence[str],
        stripes: int = 1,
        stripe_kib: int | None = None,
        pvs: Sequence[str] = (),
    ) -> None:
        """Make an inactive LV with its tags in one metadata change. Nothing is zeroed: the first stage does that.

        Raises `NoSpace` where LVM will not allocate in this group. After any failure it is looked whether the volume is
        there after all; only when that can't be told either, a volume may be there that the caller doesn't know.
        """
        self.version()
        argv = ["lvcreate", "--yes", "--name", name, "--extents", str(extents)]
        argv += ["--activate", "n", "--zero", "n", "--wipesignatures", "n", *self._inactive_at_boot]
        for tag in tags:
            argv += ["--addtag", tag]
        if stripes > 1:
            argv += ["--stripes", str(stripes)]
            argv += ["--stripesize", f"{stripe_kib}k"] if stripe_kib is not None else []
        try:
            self._commit(vg, [*argv, vg, *pvs], makes_volume=True)
        except CommandEnded as error:
            if not self._was_made(vg, name, tags, error):
                raise
        except CommandError as error:
            if not self._was_made(vg, name, tags, error):
                raise failures.of_allocation(vg, error) from error
        else:
            self._require(vg, name, "made", lambda lv: lv is not None and lv.tags >= frozenset(tags))

    def _was_made(self, vg: str, name: str, tags: Sequence[str], failure: ToolFailed) -> bool:
        """Whether a failed `lvcreate` made the volume all the same.

        Raises `Unavailable` when nobody can tell: the claim's provisioner must not take the failure as the last word.
        """
        try:
            found = self._find(vg, name)
        except SealedLocalError as error:
            raise Unavailable(
                f"whether {vg}/{name} was made is not known ({failure}; then: {error}); a repeat will find it or make it"
            ) from error
        made = found is not None and found.tags >= frozenset(tags)
        if made:
            _log.warning(
                "lvcreate failed, and the volume is there", extra={"lv": f"{vg}/{name}", "error": str(failure)}
            )
        return made

    def _find(self, vg: str, name: str) -> LogicalVolume | None:
        """The LV as the group's metadata has it now. Raises as `Report.vg` does when the group can't be looked into."""
        group = self.report().vg(vg)
        return next((lv for lv in group.lvs if lv.name == name), None) if group is not None else None

    def _require(self, vg: str, name: str, what: str, right: Callable[[LogicalVolume | None], bool]) -> None:
        """An exit status is no proof. Raises `ToolFailed` unless the group's metadata shows what the command should do."""
        if not right(self._find(vg, name)):
            raise _not_done(vg, name, what)

    def remove(self, vg: str, name: str) -> None:
        """Remove an inactive LV on which nothing depends.

        LVM removes the snapshots of an inactive origin with it, and asks nobody. Its own selection, made under the group's
        lock, leaves an origin out, whenever somebody has made a snapshot. Raises `InUse` then.
        """
        with self._told_by_its_kind():
            self._commit(vg, ["lvremove", "--yes", "--select", _NO_ORIGIN, f"{vg}/{name}"])
        left = self._find(vg, name)
        if left is not None and left.is_origin:
            raise InUse(
                f"{vg}/{name} has a snapshot, so it is left where it is. Look at lvs -a {vg}; the call is repeated"
            )
        if left is not None:
            raise _not_done(vg, name, "removed")

    def change_tags(self, vg: str, name: str, *, remove: Sequence[str], add: Sequence[str]) -> None:
        """Change tags of an LV in one metadata change. LVM adds before it removes: no tag may be in both."""
        argv = ["lvchange", "--yes"]
        for tag in remove:
            argv += ["--deltag", tag]
        for tag in add:
            argv += ["--addtag", tag]
        with self._told_by_its_kind():
            self._commit(vg, [*argv, f"{vg}/{name}"])
        gone, there = frozenset(remove), frozenset(add)
        self._require(
            vg, name, "changed", lambda lv: lv is not None and lv.tags >= there and not lv.tags & (gone - there)
        )

    def activate(self, vg: str, name: str) -> None:
        """Make the kernel device, and see that the LV's path in /dev leads to that very device.

        `vgmknodes` brings back an entry that a restart of udev or of the pod lost, and mends one that is left over from
        another time. Raises `Refused` when it doesn't: writing through a wrong path would destroy another volume.
        """
        with self._told_by_its_kind():
            self._change(vg, ["lvchange", "--yes", "--activate", "y", "--ignoreactivationskip", f"{vg}/{name}"])
        device = disks.mapped(dm_name.encode(vg, name))
        if device is None:
            raise ToolFailed(f"LVM says that {vg}/{name} is active, and the kernel has no such device")
        path = f"/dev/{vg}/{name}"
        if disks.leads_to(path) != device:
            self._change(vg, ["vgmknodes", f"{vg}/{name}"])
        if disks.leads_to(path) != device:
            raise Refused(
                f"{path} does not lead to the volume's device {device}; look at `ls -l {path}` and "
                f"`dmsetup ls`, remove the stale entry, then repeat"
            )

    def deactivate(self, vg: str, name: str) -> None:
        """Take the kernel device away. A virtual machine may close it a moment late: LVM itself waits 5 s for that.

        Raises `InUse` when it stays open.
        """
        with self._told_by_its_kind():
            self._change(vg, ["lvchange", "--yes", "--activate", "n", f"{vg}/{name}"])

    def create_vg(self, vg: str, devices: Sequence[str]) -> None:
        """Make a volume group of blank devices; LVM itself refuses one with a signature, as it is never told to force."""
        self._commit(vg, ["vgcreate", *_metadata_size(devices), vg, *devices], hints=True)

    def extend_vg(self, vg: str, devices: Sequence[str]) -> None:
        """Add blank devices to a volume group."""
        self._commit(vg, ["vgextend", *_metadata_size(devices), vg, *devices], hints=True)

    def version(self) -> str:
        """LVM's own version line. Raises `ToolFailed` when lvm is not installed, or doesn't read the settings of ours.

        Asked once, and before any other command runs: until then nobody knows that LVM keeps to the driver's filter.
        """
        with self._beginning:
            if not self._version:
                self._process.require_settings(_READ_SECONDS)
                first = self._process.run(["version"], _READ_SECONDS).text.partition("\n")[0]
                version = first.split(":", 1)[-1].strip() or "unknown"
                numbers = tuple(int(part) for part in re.findall("[0-9]+", version)[:3])
                known = numbers >= _AUTOACTIVATION_SINCE
                self._inactive_at_boot = _NO_AUTOACTIVATION if known else _SKIP_ACTIVATION
                self._version = version
            return self._version

    @contextmanager
    def _told_by_its_kind(self) -> Iterator[None]:
        try:
            yield
        except CommandError as error:
            raise failures.of_change(error) from error

    def _commit(self, vg: str, argv: Sequence[str], *, hints: bool = False, makes_volume: bool = False) -> None:
        """One command that changes a group's metadata.

        Raises as `Report.vg` does when nobody can look into the group: LVM would record disks as gone that it doesn't see.
        """
        with self.turns.group(vg, f"{argv[0]} {argv[-1]}"):
            try:
                group = self.report().vg(vg)
            except Unavailable as error:
                raise Unavailable(f"{argv[0]} of {argv[-1]} was not begun: {error}") from error
            if makes_volume and group is not None:
                self._trust.use(group)
            self._proved.changes(vg)
            self._change(vg, argv, hints=hints)

    def _change(self, vg: str, argv: Sequence[str], *, hints: bool = False) -> None:
        """One command in the group's turn. Disks that don't answer are kept out of its sight, and those of strangers: LVM
        touches no group while two have its name.
        """
        with self.turns.group(vg, f"{argv[0]} {argv[-1]}"):
            hidden = self._hidden()
            with self._gate(vg):
                self._process.run(argv, _WRITE_SECONDS, hints=hints, without=hidden)

    def _gate(self, vg: str) -> threading.Lock:
        """Who runs LVM on a group has it: a look takes no turn, and is no reason for a second process of one group. Raises
        as `version` does.
        """
        self.version()
        return self._gates.setdefault(vg, threading.Lock())


def _not_done(vg: str, name: str, what: str) -> ToolFailed:
    return ToolFailed(f"LVM says that {vg}/{name} was {what}, and the group's metadata shows that it was not")


def _metadata_size(devices: Sequence[str]) -> tuple[str, str]:
    """Room for the metadata of some ten thousand volumes, of which each takes 700 bytes, and LVM holds two texts at a time.

    A small disk, which can't have so many, spends a sixty-fourth of itself, but not less than LVM's own default.
    """
    smallest = min(disks.size(device) for device in devices)
    return "--metadatasize", f"{min(16 * MIB, max(MIB, smallest // 64)) // KIB}k"
