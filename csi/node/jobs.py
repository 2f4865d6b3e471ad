"""Long work in the background: a few at a time in each volume group, at low I/O priority, whoever still waits for it.

A job is known by its volume's name and bound to the LV that had the name when it began. What it has to do is written in the
volume's tags and nowhere else, so that a driver that was killed finds its jobs again; this module holds only those of this
process.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from csi.core import log, process
from csi.core.errors import Busy, SealedLocalError, Unavailable
from csi.node import caller
from csi.node.lvm.model import LogicalVolume
from csi.node.lvm.names import VolumeId

_log = logging.getLogger(__name__)

WORKERS_PER_GROUP: Final = 2
PATIENCE_SECONDS: Final = 10.0
"""How long a call waits for its job; external-provisioner gives up on a call after 15 s."""
_WAITERS: Final = 32
"""So many calls wait at once, and further ones are answered without waiting: threads are for other pods' calls, too."""
_POLL_SECONDS: Final = 0.25
_BUSY_SECONDS: Final = 0.5
_FIRST_RETRY_SECONDS: Final = 5.0
_LAST_RETRY_SECONDS: Final = 300.0


class Kind(StrEnum):
    """What a job does to its volume."""

    DELETE = "delete"
    """Wipe and remove it."""
    PREPARE = "prepare"
    """Clear and prepare it for its first use."""

    @property
    def call(self) -> str:
        """The CSI call that asks for it."""
        return {Kind.DELETE: "DeleteVolume", Kind.PREPARE: "NodeStageVolume"}[self]

    @property
    def rank(self) -> caller.Rank:
        """A pod waits for its volume, and nobody for what was given up."""
        return {Kind.DELETE: caller.Rank.LAST, Kind.PREPARE: caller.Rank.POD}[self]

    @property
    def is_retried(self) -> bool:
        """Whether a failed one is tried again without being asked: what was given up must not stay on the disk, while a new
        volume may be wanted by nobody any more.
        """
        return self is Kind.DELETE


class State(StrEnum):
    """Where a job is. One that has ended well is no job any more."""

    QUEUED = "queued"
    RUNNING = "running"
    FAILED = "failed"
    """Waits to be tried again."""


class Stopped(Exception):
    """The job was called off, has lost its object, or the driver ends: the work stops here and loses nothing."""


class SteppedBack(Exception):
    """More urgent work waits for this worker: the job goes on later, where it was."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One volume's long work. Changed by `Jobs` and, its progress, by the worker alone."""

    kind: Kind
    lv: LogicalVolume
    """As it was when the job began: its names and its UUID count."""
    work: Callable[["Job"], None]
    must_step_back: Callable[["Job"], bool] = lambda _: False
    """Asked between two parts of the work."""
    state: State = State.QUEUED
    steps_back: bool = False
    done_bytes: int = 0
    of_bytes: int = 0
    failure: Exception | None = None
    failures: int = 0
    not_before: float = 0.0
    is_awaited: bool = False
    called_off: threading.Event = field(default_factory=threading.Event)
    log_fields: dict[str, str] = field(default_factory=log.fields)
    """Those of the call that began it."""

    @property
    def volume_id(self) -> VolumeId:
        """The volume's id, which another LV may have one day."""
        return VolumeId(self.lv.name)

    @property
    def vg(self) -> str:
        """The group whose workers do it."""
        return self.lv.vg

    def is_for(self, lv: LogicalVolume) -> bool:
        """Whether this is the job's own LV, and not one that got its name later."""
        return (lv.vg, lv.name, lv.uuid) == (self.lv.vg, self.lv.name, self.lv.uuid)

    def describe(self) -> str:
        """How far it is, for a person."""
        share = f", {self.done_bytes * 100 // self.of_bytes} %" if self.of_bytes else ""
        shown = f"{self.state}, {self.done_bytes} of {self.of_bytes} bytes done{share}"
        return f"{shown}; the last try failed: {self.failure}" if self.failure is not None else shown

    def advance(self, done_bytes: int, of_bytes: int) -> None:
        """Tell the progress. Raises `Stopped` when the work must end here, `SteppedBack` when it must wait."""
        self.done_bytes, self.of_bytes = done_bytes, of_bytes
        if self.called_off.is_set():
            raise Stopped
        if self.must_step_back(self):
            raise SteppedBack


class Jobs:
    """The jobs of this process. Threads start when a group has work, and end with it."""

    def __init__(
        self, *, workers_per_group: int = WORKERS_PER_GROUP, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._workers_per_group = workers_per_group
        self._clock = clock
        self._changed = threading.Condition()
        self._jobs: dict[VolumeId, Job] = {}
        self._workers: Counter[str] = Counter()
        self._waiters = threading.Semaphore(_WAITERS)
        self._stopping = False

    def start(self, kind: Kind, lv: LogicalVolume, work: Callable[[Job], None], of_bytes: int = 0) -> Job:
        """Queue work on an LV. The same that is there already goes on, and one that failed is tried again at once.

        What else is queued under the volume's name ends: it was for an LV that is gone, or is not wanted any more. Raises
        `Busy` while such a job runs, and `Unavailable` when there is no thread for the work.
        """
        with self._changed:
            job = self._jobs.get(VolumeId(lv.name))
            if job is not None and (job.kind is not kind or not job.is_for(lv)):
                if job.state is State.RUNNING:
                    raise Busy(f"{job.kind.call} of an earlier volume {job.volume_id} has not ended yet; repeat")
                self._end(job, Stopped())
                job = None
            self._hire(lv.vg)
            if job is None:
                job = Job(kind=kind, lv=lv, work=work, of_bytes=of_bytes, must_step_back=self._must_step_back)
                self._jobs[job.volume_id] = job
            elif job.state is State.FAILED:
                job.state = State.QUEUED
            job.not_before = 0.0
            self._changed.notify_all()
            return job

    def _hire(self, vg: str) -> None:
        """One worker more, as long as there may be one. Where no thread can be had, those that are there do the work."""
        if self._workers[vg] >= self._workers_per_group or self._stopping:
            return
        try:
            threading.Thread(target=self._serve, args=(vg,), name=f"jobs-{vg}", daemon=True).start()
        except RuntimeError as error:
            if not self._workers[vg]:
                raise Unavailable(f"no thread can be had for the work at volume group {vg}: {error}; repeat") from error
            return
        self._workers[vg] += 1

    def find(self, volume_id: VolumeId) -> Job | None:
        """The volume's job of this moment."""
        with self._changed:
            return self._jobs.get(volume_id)

    def wait(self, job: Job, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait a little for a job's end.

        Raises `Busy` with its progress when it goes on, and what the job raised when it failed. A caller that has left, a
        second one for the same job, and one too many don't wait.
        """
        with self._changed:
            if not job.is_awaited and self._waiters.acquire(blocking=False):
                job.is_awaited = True
                try:
                    self._await(job, self._clock() + seconds)
                finally:
                    job.is_awaited = False
                    self._waiters.release()
            ended = self._jobs.get(job.volume_id) is not job
            if job.failure is not None and (ended or job.state is State.FAILED):
                raise job.failure
            if not ended:
                raise Busy(f"{job.kind.call} of volume {job.volume_id} is still running ({job.describe()}); repeat")

    def call_off(self, volume_id: VolumeId, kind: Kind, seconds: float = PATIENCE_SECONDS) -> None:
        """End a volume's job of this kind, if there is one. Raises `Busy` when it doesn't end in time."""
        with self._changed:
            job = self._jobs.get(volume_id)
            if job is None or job.kind is not kind:
                return
            job.called_off.set()
            if job.state is not State.RUNNING:
                self._end(job, Stopped())
            self._await(job, self._clock() + seconds)
            if self._jobs.get(volume_id) is job:
                raise Busy(f"{kind.call} of volume {volume_id} is called off and has not ended yet; repeat")

    def shown(self) -> tuple[Job, ...]:
        """All jobs, for the metrics."""
        with self._changed:
            return tuple(self._jobs.values())

    def stop(self, seconds: float) -> None:
        """Begin nothing more and end what runs, between two of its parts. What is left is found again at the next start."""
        with self._changed:
            self._stopping = True
            for job in self._jobs.values():
                job.called_off.set()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._workers.total(), seconds)

    def _await(self, job: Job, give_up: float) -> None:
        while self._jobs.get(job.volume_id) is job and job.state is not State.FAILED:
            left = give_up - self._clock()
            if left <= 0 or self._stopping or not caller.still_waits():
                return
            self._changed.wait(min(left, _POLL_SECONDS))

    def _serve(self, vg: str) -> None:
        process.lower_io_priority()
        while (job := self._next(vg)) is not None:
            with log.context(**job.log_fields, job=job.kind), caller.ranked(job.kind.rank):
                self._settle(job, _failure_of(job))

    def _next(self, vg: str) -> Job | None:
        """The group's next job, when its time has come; None when there is none, and this worker ends."""
        with self._changed:
            while not self._stopping:
                open_jobs = [job for job in self._jobs.values() if job.vg == vg and job.state is not State.RUNNING]
                if not open_jobs:
                    break
                due = [job for job in open_jobs if job.not_before <= self._clock()]
                if due:
                    job = min(due, key=lambda job: (job.kind.rank, job.not_before))
                    job.state = State.RUNNING
                    return job
                self._changed.wait(min(job.not_before for job in open_jobs) - self._clock())
            self._workers[vg] -= 1
            self._changed.notify_all()
            return None

    def _must_step_back(self, job: Job) -> bool:
        """Whether more urgent work of the group waits for more workers than are free, or will be in a moment."""
        with self._changed:
            of_group = [other for other in self._jobs.values() if other.vg == job.vg]
            running = [other for other in of_group if other.state is State.RUNNING]
            due = [other for other in of_group if other.state is State.QUEUED and other.not_before <= self._clock()]
            waiting = sum(other.kind.rank < job.kind.rank for other in due)
            free = self._workers[job.vg] - len(running) + sum(other.steps_back for other in running)
            job.steps_back = waiting > free
            return job.steps_back

    def _settle(self, job: Job, failure: Exception | None) -> None:
        with self._changed:
            job.steps_back = False
            if isinstance(failure, SteppedBack):
                job.state = State.QUEUED
                self._changed.notify_all()
            elif isinstance(failure, Busy):
                # A call has the volume for a moment; that is no failure.
                job.state, job.not_before = State.QUEUED, self._clock() + _BUSY_SECONDS
                self._changed.notify_all()
            elif failure is None or isinstance(failure, Stopped) or not job.kind.is_retried:
                self._end(job, failure)
            else:
                job.failures += 1
                seconds = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** (job.failures - 1))
                job.state, job.failure, job.not_before = State.FAILED, failure, self._clock() + seconds
                self._changed.notify_all()

    def _end(self, job: Job, failure: Exception | None) -> None:
        if isinstance(failure, Stopped):
            failure = Busy(f"{job.kind.call} of volume {job.volume_id} was called off; repeat if it is still wanted")
        job.failure = failure
        self._jobs.pop(job.volume_id, None)
        self._changed.notify_all()


def _failure_of(job: Job) -> Exception | None:
    started = time.monotonic()
    try:
        job.work(job)
    except (Busy, Stopped, SteppedBack) as reason:
        return reason
    except Exception as error:
        expected = isinstance(error, SealedLocalError)
        _log.warning("job failed", exc_info=None if expected else error, extra={"error": str(error)})
        return error
    _log.info("job done", extra={"bytes": job.of_bytes, "ms": round((time.monotonic() - started) * 1000)})
    return None
