"""A toy node that carries out every step of a host plan as the real one does, and can be killed in the middle of one.

A killed step may have done nothing, half, or all of its work; a reboot forgets mounts, activation and Kata's registry and
keeps LVs with their tags and content. Content is one word a volume: what it is decides what a test demands of it.

It is not the driver's alone: `tests.fakes.others` does to it what else happens on a node.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from csi.core.device_number import DeviceNumber
from csi.core.errors import CommandError, CommandTimeout, ForeignContent, InUse, Refused, SealedLocalError
from csi.core.mount import Mount
from csi.node.kata.record import Record
from csi.node.lvm.live_device import LiveDevice
from csi.node.lvm.model import LogicalVolume, PhysicalVolume, Report, VolumeGroup
from csi.node.plan import erase, steps
from csi.node.plan.node_view import ActiveDevice, PathKind, PathView, Publications, tombstone_owner
from csi.node.plan.teardown import Place

EXTENT = 4 * 1024 * 1024
FRESH = "left over from another volume"
ZEROED = "zeroed"
HALF = "half-written"


class Killed(Exception):
    """The process ended here."""


class JobBegun(Exception):
    """The rest of the plan is left to a job, which looks and plans anew."""


class Trouble(Enum):
    """What becomes of the next LVM command."""

    REFUSED = "it fails and has done nothing"
    DONE = "it fails and has done its work"
    HANGS = "it is ended before it could say how it went, and does its work later"


@dataclass
class Node:
    """The state of the toy. `fuse` counts down at every moment at which the process may die."""

    lvs: dict[str, LogicalVolume] = field(default_factory=dict)
    devices: dict[str, DeviceNumber] = field(default_factory=dict)
    """The kernel's devices of active LVs."""
    content: dict[str, str] = field(default_factory=dict)
    zeroed: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    """Ranges that were zeroed one after another, since somebody last wrote."""
    mounts: list[Mount] = field(default_factory=list)
    directories: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    records: dict[str, Record] = field(default_factory=dict)
    read_only: set[str] = field(default_factory=set)
    staged: dict[str, str] = field(default_factory=dict)
    fuse: int | None = None
    formats: list[str] = field(default_factory=list)
    foreign: dict[tuple[str, str], LogicalVolume] = field(default_factory=dict)
    """LVs of others, by group and name."""
    destroyed: list[str] = field(default_factory=list)
    """LVs of others that the driver removed."""
    opened: dict[str, int] = field(default_factory=dict)
    """How many processes and virtual machines have a volume open, and how many loop devices lie on it."""
    loops: dict[str, int] = field(default_factory=dict)
    leaves_long_work: bool = False
    """Whether a call only begins what takes long."""
    trouble: Trouble | None = None
    visit: tuple[int, Callable[[], None]] | None = None
    """What somebody else does at the moment that comes after so many."""
    _late: list[Callable[[], None]] = field(default_factory=list)
    made: int = 0
    _minor: int = 0

    def moment(self) -> None:
        """A point at which somebody else may come, and the process may be killed."""
        if self.visit is not None:
            left, come = self.visit
            self.visit = (left - 1, come) if left else None
            if not left:
                come()
        if self.fuse is not None:
            if self.fuse == 0:
                raise Killed
            self.fuse -= 1

    def apply(self, plan: steps.Plan) -> None:
        """Carry out a plan; every step has a moment before it and, inside, where it has parts.

        Raises `JobBegun` where long work is left to a job, before that.
        """
        at_once, rest = erase.split(plan) if self.leaves_long_work else (plan, ())
        for step in _in_slices(at_once):
            self.moment()
            if isinstance(step, _BY_LVM):
                self._run_lvm(step)
            else:
                self._run(step)
        self.moment()
        if rest:
            raise JobBegun

    def _run(self, step: steps.Step) -> None:
        if isinstance(step, _EXCLUSIVE) and self.is_mounted(self.named(step.device)):
            raise InUse(step.device)
        _HANDLERS[type(step)](self, step)

    def _run_lvm(self, step: steps.Step) -> None:
        """LVM's own lock makes a command wait for one that hangs."""
        self._settle()
        trouble, self.trouble = self.trouble, None
        if trouble is Trouble.HANGS:
            self._late.append(lambda: _HANDLERS[type(step)](self, step))
            raise CommandTimeout(["lvm"], 600)
        if trouble is not Trouble.REFUSED:
            self._run(step)
        if trouble is not None:
            raise CommandError(["lvm"], 5, "", trouble.value)

    def _settle(self) -> None:
        late, self._late = self._late, []
        for work in late:
            with contextlib.suppress(SealedLocalError):
                work()

    def record(self, name: str) -> LogicalVolume:
        """An LV as LVM's metadata has it."""
        if name not in self.lvs:
            raise CommandError(["lvm"], 5, "", f"Failed to find logical volume {name}")
        return self.lvs[name]

    def reboot(self) -> None:
        """The power was off: memory is empty, disks are not."""
        self.mounts.clear()
        self.records.clear()
        self.staged.clear()
        self.read_only.clear()
        self.devices.clear()
        self.opened.clear()
        self.loops.clear()
        self._late.clear()

    @property
    def known_groups(self) -> dict[str, str]:
        """Its groups are always here."""
        return {}

    def report(self) -> Report:
        """What LVM would show."""
        self._settle()
        others = tuple(lv for lv in self.foreign.values() if lv.vg == "vg0")
        used = sum(lv.size_bytes // EXTENT for lv in (*self.lvs.values(), *others))
        pv = PhysicalVolume(name="/dev/a", extents=1000, free_extents=1000 - used, allocatable=True, missing=False)
        vg = VolumeGroup(
            name="vg0",
            extent_bytes=EXTENT,
            extents=1000,
            free_extents=1000 - used,
            writable=True,
            exported=False,
            partial=False,
            pvs=(pv,),
            lvs=(*self.lvs.values(), *others),
        )
        elsewhere = tuple(lv for lv in self.foreign.values() if lv.vg != "vg0")
        return Report(vgs=(vg, replace(vg, name="vg1", lvs=elsewhere)) if elsewhere else (vg,))

    def path(self, path: str) -> PathView:
        """What `csi.node.observe.path` would show."""
        found = tuple(mount for mount in self.mounts if mount.target == path)
        bound = next((mount for mount in reversed(found) if mount.fstype == "devtmpfs"), None)
        if bound is not None:
            return PathView(path=path, kind=PathKind.DEVICE, mounts=found, device=bound.device)
        kind = (
            PathKind.DIRECTORY if path in self.directories else PathKind.FILE if path in self.files else PathKind.ABSENT
        )
        return PathView(path=path, kind=kind, mounts=found)

    def publications(self, name: str, staging: str = "") -> Publications:
        """What `csi.node.observe.publications` would show."""
        lv = self.lvs.get(name)
        if lv is None:
            return Publications()
        shown = [mount for mount in self.mounts if mount.device == self.devices.get(name)]
        return Publications(
            mounts=tuple(m.target for m in shown if m.fstype != "devtmpfs" and m.target != staging),
            devices=tuple(m.target for m in shown if m.fstype == "devtmpfs"),
            tombstones=tuple(m.target for m in self.mounts if tombstone_owner(m) == name),
            records={target: record for target, record in self.records.items() if record.device == lv.path},
        )

    def place(self, path: str) -> Place:
        """What `csi.node.observe.place` would show."""
        view = self.path(path)
        owners = {number: name for name, number in self.devices.items()}
        return Place(view=view, owners=tuple(tombstone_owner(m) or owners.get(m.device) for m in view.mounts))

    def active(self, name: str) -> tuple[ActiveDevice, ...]:
        """What `csi.node.observe.devices` would show."""
        live = self.live(name)
        return (ActiveDevice(vg="vg0", name=name, live=live),) if live is not None else ()

    def pod_write(self, name: str, target: str, data: str) -> str:
        """A pod (or the guest, where there is a record) writes; answers where the data went."""
        record = self.records.get(target)
        top = self.path(target).top
        if record is not None:
            self.content[name] = data
            return "guest"
        if top is None:
            return "host" if target in self.directories else "nowhere"
        if top.read_only:
            return "refused"
        self.content[name] = data
        return "volume"

    def live(self, name: str) -> LiveDevice | None:
        """What `csi.node.observe.live_device` would show."""
        number = self.devices.get(name)
        if number is None:
            return None
        loops = self.loops.get(name, 0)
        return LiveDevice(
            number=number,
            open_count=int(self.is_mounted(name)) + self.opened.get(name, 0) + loops,
            loops=loops,
            read_only=name in self.read_only,
            mounted=self.is_mounted(name),
        )

    def is_mounted(self, name: str) -> bool:
        """Whether a filesystem of the volume is mounted anywhere."""
        number = self.devices.get(name)
        return any(mount.device == number and mount.fstype != "devtmpfs" for mount in self.mounts)

    def activate(self, name: str) -> None:
        """Give the LV a device number."""
        if name not in self.devices:
            self._minor += 1
            self.devices[name] = DeviceNumber(254, self._minor)

    def named(self, device: str) -> str:
        """The LV of a device path, which must be active."""
        name = device.rsplit("/", 1)[-1]
        if name not in self.devices:
            raise Refused(f"{device} is not active")
        return name

    def mount(self, target: str, device: DeviceNumber, fstype: str, source: str, *, read_only: bool) -> None:
        """Add a mount on top."""
        options = frozenset({"ro" if read_only else "rw"})
        self.mounts.append(
            Mount(
                target=target,
                root="/",
                device=device,
                fstype=fstype,
                source=source,
                options=options,
                super_options=frozenset(),
            )
        )


def _in_slices(plan: steps.Plan) -> Iterator[steps.Step]:
    for step in plan:
        if isinstance(step, erase.ErasingStep):
            yield from erase.slices(step)
        else:
            yield step


def _create(node: Node, step: steps.CreateLV) -> None:
    assert step.name not in node.lvs, "LVM refuses a second LV of the same name"
    node.lvs[step.name] = LogicalVolume(
        name=step.name,
        vg=step.vg,
        size_bytes=step.extents * EXTENT,
        tags=frozenset(step.tags),
        partial=False,
        uuid=f"uuid-{node.made}",
    )
    node.made += 1
    node.content[step.name] = FRESH


def _remove(node: Node, step: steps.RemoveLV) -> None:
    """With the volume go its snapshots, without a word."""
    node.record(step.name)
    del node.lvs[step.name]
    node.devices.pop(step.name, None)
    gone = [key for key, lv in node.foreign.items() if lv.origin == step.name]
    for key in gone:
        del node.foreign[key]
        node.destroyed.append(key[1])


def _tags(node: Node, step: steps.ChangeTags) -> None:
    lv = node.record(step.name)
    node.lvs[step.name] = replace(lv, tags=lv.tags - set(step.remove) | set(step.add))


def _release(node: Node, step: steps.ReleaseDevice) -> None:
    live = node.live(step.name)
    if live is not None and live.is_open:
        raise InUse(step.name)
    node.devices.pop(step.name, None)
    node.read_only.discard(step.name)


def _zero(node: Node, step: steps.ZeroRange | steps.ClearRange) -> None:
    name = node.named(step.device)
    assert name not in node.read_only, "the kernel refuses to write a read-only device"
    if node.content[name] not in (HALF, ZEROED):
        node.zeroed[name] = set()
    node.content[name] = HALF
    node.moment()
    ranges = node.zeroed[name]
    ranges.add((step.offset, step.length))
    end = 0
    for offset, length in sorted(ranges):
        end = max(end, offset + length) if offset <= end else end
    if end >= node.lvs[name].size_bytes:
        node.content[name] = ZEROED


def _format(node: Node, step: steps.MakeFilesystem) -> None:
    name = node.named(step.device)
    node.formats.append(name)
    node.zeroed[name] = set()
    node.content[name] = HALF
    node.moment()
    node.content[name] = f"empty {step.fstype}"


def _require_unused(node: Node, step: steps.RequireUnused) -> None:
    name = node.named(step.device)
    held = node.content[name]
    # A leftover of another volume, zeroes, and what an mkfs made that was killed before the tag may go.
    if name in node.formats and held not in (FRESH, ZEROED, HALF) and not held.startswith("empty "):
        raise ForeignContent(step.device)


def _require(node: Node, step: steps.RequireFilesystem) -> None:
    if node.content[node.named(step.device)] in (FRESH, ZEROED, HALF):
        raise ForeignContent(step.device)


def _mount_filesystem(node: Node, step: steps.MountFilesystem) -> None:
    node.directories.add(step.target)
    node.moment()
    device = node.devices[node.named(step.device)]
    node.mount(step.target, device, step.fstype, step.device, read_only="ro" in step.options)


def _bind_directory(node: Node, step: steps.BindDirectory) -> None:
    node.directories.add(step.target)
    node.moment()
    top = node.path(step.source).top
    assert top is not None
    node.mount(step.target, top.device, top.fstype, top.source, read_only=step.read_only)


def _bind_device(node: Node, step: steps.BindDevice) -> None:
    node.files.add(step.target)
    node.moment()
    device = node.devices[node.named(step.device)]
    node.mount(step.target, device, "devtmpfs", step.device, read_only=False)


def _set_read_only(node: Node, step: steps.SetReadOnly) -> None:
    change = node.read_only.add if step.read_only else node.read_only.discard
    change(node.named(step.device))


def _tombstone(node: Node, step: steps.MountTombstone) -> None:
    node.directories.add(step.target)
    node.moment()
    node.mount(step.target, DeviceNumber(0, 99), "tmpfs", step.source, read_only=True)


def _write_record(node: Node, step: steps.WriteRecord) -> None:
    node.records[step.target] = step.record


def _remove_record(node: Node, step: steps.RemoveRecord) -> None:
    node.records.pop(step.target, None)


def _unmount(node: Node, step: steps.Unmount) -> None:
    while any(mount.target == step.target for mount in node.mounts):
        last = max(number for number, mount in enumerate(node.mounts) if mount.target == step.target)
        del node.mounts[last]
        node.moment()


def _remove_target(node: Node, step: steps.RemoveTarget) -> None:
    node.directories.discard(step.target)
    node.files.discard(step.target)


_BY_LVM = (steps.CreateLV, steps.RemoveLV, steps.ChangeTags, steps.Activate)
_EXCLUSIVE = (steps.ZeroRange, steps.ClearRange, steps.DiscardRange, steps.MakeFilesystem)
_HANDLERS: dict[type, Callable[[Node, steps.Step], None]] = {  # type: ignore[assignment]
    steps.CreateLV: _create,
    steps.RemoveLV: _remove,
    steps.ChangeTags: _tags,
    steps.Activate: lambda node, step: node.activate(step.name),
    steps.ReleaseDevice: _release,
    steps.MarkStaged: lambda node, step: node.staged.update({step.volume_id: step.path}),
    steps.ForgetStaged: lambda node, step: node.staged.pop(step.volume_id, None),
    steps.ZeroRange: _zero,
    steps.ClearRange: _zero,
    steps.DiscardRange: lambda node, step: None,
    steps.RequireUnused: _require_unused,
    steps.MakeFilesystem: _format,
    steps.RequireFilesystem: _require,
    steps.CheckFilesystem: lambda node, step: None,
    steps.MountFilesystem: _mount_filesystem,
    steps.BindDirectory: _bind_directory,
    steps.BindDevice: _bind_device,
    steps.SetReadOnly: _set_read_only,
    steps.MountTombstone: _tombstone,
    steps.WriteRecord: _write_record,
    steps.RemoveRecord: _remove_record,
    steps.Unmount: _unmount,
    steps.RemoveTarget: _remove_target,
}
