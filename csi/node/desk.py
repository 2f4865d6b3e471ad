"""What the servicers work at: it gives a call, under the volume's lock, one view of one moment, and carries out its plan.

LVM's records are taken once, the kernel's mounts are listed once, and Kata's registry is read once, so that all that a plan
is made from belongs together.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from csi.core import mounts
from csi.core.command import LocalRunner, Runner
from csi.core.errors import NoSpace, NotFound
from csi.core.mount import Mount
from csi.node import observe
from csi.node.apply import Handlers, apply
from csi.node.effects import Effects
from csi.node.jobs import Jobs
from csi.node.kata.registry import Entry, KataRegistry
from csi.node.locks import VolumeLocks
from csi.node.lvm.command import Lvm
from csi.node.lvm.model import Report
from csi.node.lvm.names import VolumeId
from csi.node.plan import provision, steps
from csi.node.plan.node_view import PathView, Publications
from csi.node.plan.target import Conditions
from csi.node.refusals import Refusals
from csi.node.settings import Settings
from csi.node.volume import Volume

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is around volumes at one moment, as the kernel and Kata's registry show it without LVM."""

    mounts: tuple[Mount, ...]
    entries: tuple[Entry, ...]

    def path(self, value: str) -> PathView:
        """What lies and what is mounted at a path of a request."""
        return observe.path(value, self.mounts)

    def publications(self, volume: Volume | None, staging_path: str = "") -> Publications:
        """Every place that shows the volume, staging path not counted."""
        return observe.publications(self.entries, self.mounts, volume, staging_path)

    def has_record(self, target: str) -> bool:
        """Whether Kata's registry has anything for a target path, a whole record or not."""
        return any(entry.target == target for entry in self.entries)

    def records(self, target: str, volume_id: VolumeId) -> bool:
        """Whether a Kata record shows the volume at a target path."""
        return any(
            entry.target == target and entry.record is not None and entry.record.volume_id == volume_id
            for entry in self.entries
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One volume, or its absence, and what is around it at the same moment."""

    volume_id: VolumeId
    volume: Volume | None
    report: Report
    around: Surroundings

    @property
    def existing(self) -> Volume:
        """The volume. Raises `NotFound` when there is none."""
        if self.volume is None:
            raise NotFound(f"there is no volume {self.volume_id} on this node")
        return self.volume

    def publications(self, staging_path: str = "") -> Publications:
        """Every place that shows the volume, staging path not counted. Without a volume, none."""
        return self.around.publications(self.volume, staging_path)

    @property
    def node_is_right(self) -> bool:
        """Whether the volume's path in /dev leads to its own kernel device."""
        return self.volume is not None and observe.node_is_right(self.volume)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The node's settings, LVM, registry, step table, locks and jobs. There is one of each, and one runner of commands."""

    settings: Settings
    runner: Runner
    lvm: Lvm
    registry: KataRegistry
    handlers: Handlers
    locks: VolumeLocks
    jobs: Jobs = field(default_factory=Jobs)
    refusals: Refusals = field(default_factory=Refusals)

    @property
    def roots(self) -> tuple[PurePosixPath, ...]:
        """Where paths of requests may lie."""
        return (self.settings.kubelet_dir,)

    @property
    def topology(self) -> tuple[str, str]:
        """This node's topology key and value."""
        return self.settings.topology_key, self.settings.topology_value

    @contextmanager
    def volume(self, volume_id: VolumeId, call: str) -> Iterator[View]:
        """Hold the volume for a call, and see what is there. LVM is free again meanwhile: other volumes' calls go on.

        Raises `Busy` when another call has the volume.
        """
        with self.locks.hold(volume_id, call):
            yield self.look(volume_id, call)

    def allocate(self, volume_id: VolumeId, call: str, plan: Callable[[Report, Conditions], steps.Plan]) -> Report:
        """Carry out a plan that may make an LV, so that the room which the report shows is still there for its steps.

        Waits for the group's turn without the volume, and holds it then: who repeats the call meanwhile waits, too, and is
        turned away only while somebody really works at the volume. Returns the report that the plan was made from.

        A group in which LVM refuses the volume is closed to the next plan, which takes another or says why there is none.
        What LVM refused to earlier calls isn't counted: whoever asks again may have mended its reason.
        """
        refused: dict[str, str] = {}

        def planned(report: Report) -> steps.Plan:
            return plan(report, replace(observe.conditions(report), refused=refused))

        while True:
            with self.locks.hold(volume_id, call):
                target = _allocates_in(planned(self.lvm.report()))
            turn = self.lvm.turns.group(target, f"{call} {volume_id}") if target is not None else nullcontext()
            with turn, self.locks.hold(volume_id, call):
                report = self.lvm.report()
                wanted = planned(report)
                if _allocates_in(wanted) not in (None, target):
                    continue
                try:
                    self.carry_out(wanted)
                except NoSpace as refusal:
                    if target is None or target in refused:
                        raise
                    _log.warning("LVM refused a volume", extra={"vg": target, "error": str(refusal)})
                    refused[target] = str(refusal)
                    self.refusals.note(target, f"{refusal}; that was a short time ago")
                else:
                    return report

    def look(self, volume_id: VolumeId, call: str) -> View:
        """The volume and what is around it now, for a call that changes nothing or holds the lock."""
        report = self.lvm.report()
        volume = provision.by_id(report, volume_id)
        seen = observe.alive(volume) if volume is not None else None
        return View(volume_id=volume_id, volume=seen, report=report, around=self.surroundings())

    def conditions(self, report: Report) -> Conditions:
        """What the kernel, and LVM's last refusals, say of the groups."""
        return replace(observe.conditions(report), refused=self.refusals.now())

    def surroundings(self) -> Surroundings:
        """What the kernel and Kata's registry show now; needs no LVM."""
        return Surroundings(mounts=mounts.listed(), entries=tuple(self.registry.entries()))

    def carry_out(self, plan: steps.Plan) -> None:
        """The plan's steps in order, each logged."""
        apply(plan, self.handlers)
        for step in plan:
            if isinstance(step, steps.CreateLV | steps.RemoveLV):
                self.refusals.forget(step.vg)


def _allocates_in(plan: steps.Plan) -> str | None:
    return next((step.vg for step in plan if isinstance(step, steps.CreateLV)), None)


def real(settings: Settings) -> Desk:
    """The desk of this machine."""
    runner = LocalRunner(settings.lvm_prefix)
    config = settings.config
    lvm = Lvm(
        runner,
        udev=config.udev,
        lock_file=settings.state_dir / "lvm.lock",
        device_filter=config.device_filter,
        allows=config.allows,
    )
    registry = KataRegistry(settings.registry_root)
    return Desk(
        settings=settings,
        runner=runner,
        lvm=lvm,
        registry=registry,
        handlers=Effects(runner, lvm, registry).handlers(),
        locks=VolumeLocks(settings.state_dir / "volumes.lock"),
    )
