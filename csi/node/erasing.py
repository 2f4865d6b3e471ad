"""Plans that may erase much: the short part is carried out in the call, the long one by a job that looks and plans anew."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

from csi.core import log
from csi.core.errors import Busy, DiskFailed
from csi.node import apply, progress
from csi.node.desk import Desk, View
from csi.node.jobs import Job, Kind, Stopped
from csi.node.lvm import tags as volume_tags
from csi.node.lvm.model import LogicalVolume, Report
from csi.node.lvm.names import VolumeId
from csi.node.plan import deletion, erase, provision, steps
from csi.node.progress import Note
from csi.node.volume import State

_log = logging.getLogger(__name__)
_LOG_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a call wants of a volume. `plan` is asked under the volume's lock, and may be asked again by a job."""

    kind: Kind
    volume_id: VolumeId
    plan: Callable[[View], steps.Plan]


def carry_out(desk: Desk, task: Task) -> None:
    """Bring the volume to where the plan leads. Returns when it is there.

    Raises `Busy` while a job goes on, and what the job raised when it failed; a repeat finds it, or its end.
    """
    earlier = desk.jobs.find(task.volume_id)
    if earlier is not None and earlier.kind is task.kind and earlier.failure is None:
        desk.jobs.wait(earlier)
    with desk.volume(task.volume_id, task.kind.call) as view:
        at_once, rest = erase.split(_plan(desk, task, view))
        desk.carry_out(at_once)
        if not rest:
            _settle(desk, task, view)
    if rest:
        # The job takes the volume's lock itself, so it begins when this call has given it back.
        desk.jobs.wait(_begin(desk, task, view.existing.lv, erase.erased_bytes(rest)))


def _begin(desk: Desk, task: Task, lv: LogicalVolume, of_bytes: int = 0) -> Job:
    return desk.jobs.start(task.kind, lv, lambda job: _work(desk, task, job), of_bytes)


def delete(desk: Desk, volume_id: VolumeId) -> Task:
    """DeleteVolume as a task."""

    def plan(view: View) -> steps.Plan:
        if view.volume is None:
            provision.require_gone(desk.settings.config, view.report, volume_id, desk.lvm.known_groups)
            return ()
        return deletion.delete(
            view.volume,
            view.report,
            view.publications().targets,
            staged_at=desk.staged_at(volume_id),
            node_is_right=view.node_is_right,
            was_given=desk.given.knows(view.volume.lv),
        )

    return Task(kind=Kind.DELETE, volume_id=volume_id, plan=plan)


def resume(desk: Desk, report: Report) -> None:
    """Go on with every deletion that an earlier process of the driver began."""
    progress.sweep(_notes(desk), (*report.lvs, *(job.lv for job in desk.jobs.shown())))
    for volume in volume_tags.volumes(report):
        if volume.state is State.DELETING:
            with log.context(volume_id=volume.volume_id):
                try:
                    _begin(desk, delete(desk, volume.volume_id), volume.lv)
                    _log.info("deletion goes on", extra={"vg": volume.lv.vg})
                except Busy as reason:
                    # The provisioner repeats its call; other deletions must not wait for that.
                    _log.warning("deletion doesn't go on by itself", extra={"vg": volume.lv.vg, "error": str(reason)})


def _work(desk: Desk, task: Task, job: Job) -> None:
    with desk.volume(task.volume_id, task.kind.call) as view:
        _require_own(job, view)
        plan = _plan(desk, task, view)
        erasing = tuple(step for step in plan if isinstance(step, erase.ErasingStep))
        note = _note(desk, view, erasing) if erasing else None
        meter = _Meter(job=job, note=note, of_bytes=erase.erased_bytes(plan))
        for step in plan:
            handler = desk.handlers[type(step)]
            if isinstance(step, erase.ErasingStep):
                meter.cover(step, handler)
            else:
                apply.carry_out(step, handler)
        if note is not None:
            note.drop()
        _settle(desk, task, view)


def _require_own(job: Job, view: View) -> None:
    """Raises `Stopped` unless the LV is the job's, and still to be deleted where that is the work.

    A job may wait for hours, and be tried again for ever: meanwhile somebody may have removed its LV by hand, and the next
    claim of the name have got another one. One that is gone is left to the plan, which knows whether that is sure.
    """
    volume = view.volume
    if volume is None:
        return
    given_up = job.kind is not Kind.DELETE or volume.state is State.DELETING
    if not given_up or not job.is_for(volume.lv):
        _log.warning("job ends: its volume is not there any more", extra={"vg": volume.lv.vg, "uuid": volume.lv.uuid})
        raise Stopped


def _plan(desk: Desk, task: Task, view: View) -> steps.Plan:
    if task.kind is Kind.PREPARE and view.volume is not None:
        desk.given.require_new(view.volume)
    return task.plan(view)


def _settle(desk: Desk, task: Task, view: View) -> None:
    """Keep the memory of who was given what. Killed before this, a stage is repeated; a deletion leaves an empty file."""
    if view.volume is None:
        return
    match task.kind:
        case Kind.PREPARE:
            desk.given.remember(view.volume.lv)
        case Kind.DELETE:
            desk.given.forget(view.volume.lv)
        case _:
            assert_never(task.kind)


def _note(desk: Desk, view: View, erasing: tuple[erase.ErasingStep, ...]) -> Note:
    return Note(_notes(desk), view.existing.lv, erasing, progress.boot_id())


def _notes(desk: Desk) -> Path:
    return desk.settings.state_dir / "jobs"


class _Meter:
    """Erases in slices, notes how far it is, and tells it to the job and now and then to the log."""

    def __init__(self, *, job: Job, note: Note | None, of_bytes: int) -> None:
        self._job = job
        self._note = note
        self._of_bytes = of_bytes
        self._skip = note.read() if note is not None else 0
        self._done = 0
        self._logged = time.monotonic()

    def cover(self, step: erase.ErasingStep, handler: Callable[[erase.ErasingStep], None]) -> None:
        """One step, without what an earlier process has erased."""
        skipped = min(self._skip, step.length)
        self._skip -= skipped
        self._advance(skipped)
        for piece in erase.slices(step, skipped):
            self._carry_out(piece, handler)
            self._advance(piece.length)

    def _carry_out(self, piece: erase.ErasingStep, handler: Callable[[erase.ErasingStep], None]) -> None:
        try:
            # A line for each of thousands of slices is for whoever looks for a fault; others get one now and then.
            apply.carry_out(piece, handler, level=logging.DEBUG)
        except DiskFailed as error:
            if self._job.kind is Kind.DELETE:
                raise deletion.cannot_be_wiped(self._job.volume_id, self._job.vg, error) from error
            raise

    def _advance(self, erased_bytes: int) -> None:
        self._done += erased_bytes
        if self._note is not None:
            self._note.write(self._done)
        if time.monotonic() - self._logged > _LOG_SECONDS:
            self._logged = time.monotonic()
            _log.info("erasing", extra={"done_bytes": self._done, "of_bytes": self._of_bytes})
        self._job.advance(self._done, self._of_bytes)
