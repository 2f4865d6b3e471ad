"""What the servicers work at: it gives a call, under the volume's lock, one view of one moment, and carries out its plan.

LVM's records are taken once, the kernel's mounts are listed once, and Kata's registry is read once, so that all that a plan
is made from belongs together.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Final

from csi.core import mounts
from csi.core.command import LocalRunner, Runner
from csi.core.device_number import DeviceNumber
from csi.core.errors import NoSpace, NotFound
from csi.core.mount import Mount
from csi.node import observe, own_groups, stale_records, until_readable
from csi.node.apply import Handlers, apply
from csi.node.effects import Effects
from csi.node.given import Given
from csi.node.jobs import Jobs
from csi.node.kata.registry import Entry, KataRegistry
from csi.node.kubelet_places import KubeletPlaces
from csi.node.locks import VolumeLocks
from csi.node.lvm.command import Lvm
from csi.node.lvm.model import Report
from csi.node.lvm.names import VolumeId
from csi.node.plan import provision, steps
from csi.node.plan.node_view import ActiveDevice, PathView, Publications
from csi.node.plan.target import Conditions
from csi.node.plan.teardown import Unpublishing, Unstaging
from csi.node.refusals import Refusals
from csi.node.settings import Settings
from csi.node.staged_marks import StagedMarks
from csi.node.volume import Volume

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS: Final = 2.0
"""How long a call waits for another one of the same volume. Most end within it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is around volumes at one moment, as the kernel and Kata's registry show it without LVM."""

    mounts: tuple[Mount, ...]
    entries: tuple[Entry, ...]

    def path(self, value: str) -> PathView:
        """What lies and what is mounted at a path of a request."""
        return observe.path(value, self.mounts)

    def publications(
        self, volume_id: VolumeId, devices: Collection[DeviceNumber], staging: PathView | None = None
    ) -> Publications:
        """Every place that shows the volume, staging path not counted."""
        staging_path = staging.real if staging is not None else ""
        return observe.publications(self.entries, self.mounts, volume_id, devices, staging_path)

    def record_owners(self, target: PathView, volume_id: VolumeId) -> dict[str, str | None]:
        """Each text under which Kata's registry has something for a place, with the volume that it names."""
        return {
            entry.target: entry.record.volume_id if entry.record is not None else None
            for entry in self.entries
            if entry.target == target.path
            or (entry.record is not None and entry.record.volume_id == volume_id and _leads_to(entry, target))
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One volume, or its absence, and what is around it at the same moment."""

    volume_id: VolumeId
    volume: Volume | None
    report: Report
    around: Surroundings
    kubelet: KubeletPlaces

    @property
    def existing(self) -> Volume:
        """The volume. Raises `NotFound` when there is none."""
        if self.volume is None:
            raise NotFound(f"there is no volume {self.volume_id} on this node")
        return self.volume

    def publications(self, staging: PathView | None = None) -> Publications:
        """Every place that shows the volume, staging path not counted. Without a volume, none."""
        if self.volume is None:
            return Publications()
        device = self.volume.device
        return self.around.publications(self.volume_id, (device,) if device is not None else (), staging)

    def stagings(self, shown: Publications) -> tuple[str, ...]:
        """Which of the mounts are kubelet's staging paths: no pod has the volume there."""
        return tuple(path for path in shown.mounts if self.kubelet.stages(path))

    @property
    def node_is_right(self) -> bool:
        """Whether the volume's path in /dev leads to its own kernel device."""
        return self.volume is not None and observe.node_is_right(self.volume)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelView:
    """What is there of one volume by the kernel's word and Kata's registry alone, at one moment."""

    volume_id: VolumeId
    devices: tuple[ActiveDevice, ...]
    around: Surroundings
    roots: tuple[PurePosixPath, ...]
    kubelet: KubeletPlaces

    def unpublishing(self, target_path: str) -> Unpublishing:
        """What NodeUnpublish of a target has to know."""
        target = self.around.path(target_path)
        owners = self.around.record_owners(target, self.volume_id)
        return Unpublishing(
            volume_id=self.volume_id,
            target=observe.place(target, self.volume_id, owners.values()),
            record_owners=owners,
            roots=self.roots,
            devices=self.devices,
            publications=self.around.publications(self.volume_id, self._numbers),
        )

    def unstaging(self, staging_path: str) -> Unstaging:
        """What NodeUnstage of a path has to know. Mounts elsewhere than below kubelet's directory publish nothing."""
        staging = self.around.path(staging_path)
        shown = self.around.publications(self.volume_id, self._numbers, staging)
        return Unstaging(
            volume_id=self.volume_id,
            staging=observe.place(staging, self.volume_id, ()),
            publications=replace(shown, mounts=tuple(path for path in shown.mounts if self.kubelet.publishes(path))),
            other_stagings=tuple(path for path in shown.mounts if self.kubelet.stages(path)),
            devices=self.devices,
        )

    @property
    def _numbers(self) -> tuple[DeviceNumber, ...]:
        return tuple(device.live.number for device in self.devices)


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
        """Where paths of requests may lie: kubelet may name its directory by a link or by where that leads."""
        own = self.settings.kubelet_dir
        real = PurePosixPath(os.path.realpath(own))
        return (own,) if real == own else (own, real)

    @property
    def _kubelet(self) -> KubeletPlaces:
        return KubeletPlaces.of(self.settings.kubelet_dir)

    @property
    def given(self) -> Given:
        """Which volumes somebody was given."""
        return Given(self.settings.plugin_dir)

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

    @contextmanager
    def without_lvm(self, volume_id: VolumeId, call: str) -> Iterator[KernelView]:
        """Hold the volume for a call that takes it down: LVM may be busy, locked or frozen then.

        Of a group that the configuration doesn't name, no device is given: nothing of it is ever changed.
        """
        with self.locks.hold(volume_id, call):
            allowed = self.settings.config.allows
            devices = tuple(device for device in observe.devices(volume_id) if allowed(device.vg))
            held = any(device.live.is_open for device in devices)
            yield KernelView(
                volume_id=volume_id,
                devices=devices,
                around=self._around(volume_id, held=held),
                roots=self.roots,
                kubelet=self._kubelet,
            )

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
        seen = observe.alive(volume, report) if volume is not None else None
        held = seen is not None and seen.live is not None and seen.live.is_open
        return View(
            volume_id=volume_id,
            volume=seen,
            report=report,
            around=self._around(volume_id, held=held),
            kubelet=self._kubelet,
        )

    def conditions(self, report: Report) -> Conditions:
        """What the kernel, and LVM's last refusals, say of the groups."""
        return replace(observe.conditions(report), refused=self.refusals.now())

    def surroundings(self) -> Surroundings:
        """What the kernel and Kata's registry show now; needs no LVM."""
        return Surroundings(mounts=mounts.listed(), entries=tuple(self.registry.entries()))

    def _around(self, volume_id: VolumeId, *, held: bool) -> Surroundings:
        """What is around now, without records of the volume whose pods are gone: they would block it for ever."""
        seen = self.surroundings()
        left = stale_records.dropped(self.registry, seen.entries, seen.mounts, volume_id, held=held)
        return Surroundings(mounts=seen.mounts, entries=left)

    def staged_at(self, volume_id: VolumeId) -> str | None:
        """Where a volume of guests is staged; None when it isn't, and for a volume that the node mounts."""
        return StagedMarks(self.settings.state_dir / "staged").path_of(volume_id)

    def carry_out(self, plan: steps.Plan) -> None:
        """The plan's steps in order, each logged."""
        apply(plan, self.handlers)
        for step in plan:
            if isinstance(step, steps.CreateLV | steps.RemoveLV):
                self.refusals.forget(step.vg)


def _leads_to(entry: Entry, target: PathView) -> bool:
    return observe.real(entry.target) == target.real


def _allocates_in(plan: steps.Plan) -> str | None:
    return next((step.vg for step in plan if isinstance(step, steps.CreateLV)), None)


def real(settings: Settings) -> Desk:
    """The desk of this machine."""
    runner = LocalRunner(settings.lvm_prefix)
    config = settings.config
    lvm = Lvm(
        runner,
        udev=config.udev,
        elsewhere=bool(settings.lvm_prefix),
        lock_file=settings.state_dir / "lvm.lock",
        device_filter=config.device_filter,
        allows=config.allows,
        trust=until_readable.trust(lambda: own_groups.trust(config, settings.plugin_dir / "groups.json")),
    )
    registry = KataRegistry(settings.registry_root)
    return Desk(
        settings=settings,
        runner=runner,
        lvm=lvm,
        registry=registry,
        handlers=Effects(runner, lvm, registry, settings.state_dir).handlers(),
        locks=VolumeLocks(settings.state_dir / "volumes.lock", patience_seconds=_PATIENCE_SECONDS),
        jobs=Jobs(workers_per_group=config.jobs_per_group),
    )
