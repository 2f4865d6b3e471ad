"""Jobs: a few at a time in each group, whoever waits; a failed one is told and tried again; one called off stops."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from csi.core import log
from csi.core.errors import Busy, Refused, Unavailable
from csi.node import caller, jobs
from csi.node.jobs import Job, Jobs, Kind, State, SteppedBack, Stopped
from csi.node.lvm.model import LogicalVolume

PATIENCE = 20.0


@dataclass
class Work:
    """Work that begins, is held, and ends as a test says."""

    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    end: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    running: int = 0
    most: int = 0
    done: list[str] = field(default_factory=list)
    failure: Exception | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, job: Job) -> None:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.began.release()
        try:
            assert self.end.acquire(timeout=PATIENCE)
            job.advance(40, 100)
            if self.failure is not None:
                raise self.failure
            self.done.append(job.volume_id)
        finally:
            with self._lock:
                self.running -= 1

    def has_begun(self, number: int = 1) -> None:
        for _ in range(number):
            assert self.began.acquire(timeout=PATIENCE)


@pytest.fixture
def all_jobs() -> Iterator[Jobs]:
    made = Jobs()
    yield made
    made.stop(PATIENCE)


def delete(to: Jobs, work: Callable[[Job], None], volume_id: str = "pvc-1", vg: str = "vg0") -> Job:
    return to.start(Kind.DELETE, lv(volume_id, vg), work)


def lv(name: str = "pvc-1", vg: str = "vg0", uuid: str = "uuid-1") -> LogicalVolume:
    return LogicalVolume(name=name, vg=vg, size_bytes=100, tags=frozenset(), partial=False, uuid=uuid)


def test_a_job_that_ends_in_time_is_success_and_is_forgotten(all_jobs: Jobs) -> None:
    work = Work()
    job = delete(all_jobs, work)
    work.end.release()
    all_jobs.wait(job)
    assert work.done == ["pvc-1"]
    assert all_jobs.find("pvc-1") is None


def test_no_more_than_a_few_run_in_a_group_and_other_groups_do_not_wait(all_jobs: Jobs) -> None:
    slow, other = Work(), Work()
    made = [delete(all_jobs, slow, f"pvc-{number}") for number in range(10)]
    slow.has_begun(jobs.WORKERS_PER_GROUP)
    elsewhere = delete(all_jobs, other, "pvc-other", "vg1")
    other.end.release()
    all_jobs.wait(elsewhere)
    assert [job.state for job in all_jobs.shown()].count(State.RUNNING) == jobs.WORKERS_PER_GROUP
    slow.end.release(10)
    for job in made:
        all_jobs.wait(job)
    assert slow.most == jobs.WORKERS_PER_GROUP
    assert sorted(slow.done) == sorted(job.volume_id for job in made)


def test_who_asks_again_gets_the_same_job(all_jobs: Jobs) -> None:
    work = Work()
    job = delete(all_jobs, work)
    work.has_begun()
    assert delete(all_jobs, work) is job
    work.end.release(2)
    all_jobs.wait(job)
    assert work.done == ["pvc-1"]


def test_a_job_that_goes_on_is_busy_and_tells_how_far_it_is(all_jobs: Jobs) -> None:
    reported, end = threading.Event(), threading.Event()

    def work(job: Job) -> None:
        job.advance(40, 100)
        reported.set()
        end.wait(PATIENCE)

    job = delete(all_jobs, work)
    assert reported.wait(PATIENCE)
    with pytest.raises(
        Busy, match=r"DeleteVolume of volume pvc-1 is still running \(running, 40 of 100 bytes done, 40 %\)"
    ):
        all_jobs.wait(job, 0.0)
    end.set()
    all_jobs.wait(job)


def test_a_caller_that_left_does_not_wait(all_jobs: Jobs) -> None:
    work = Work()
    job = delete(all_jobs, work)
    with caller.waiting(lambda: False), pytest.raises(Busy):
        all_jobs.wait(job)
    work.end.release()
    all_jobs.wait(job)


def test_a_failure_is_told_and_kept_until_the_job_is_asked_for_again(all_jobs: Jobs) -> None:
    work = Work(failure=Refused("the disk is bad"))
    job = delete(all_jobs, work)
    work.end.release()
    for _ in range(2):
        with pytest.raises(Refused, match="the disk is bad"):
            all_jobs.wait(job)
    assert "the last try failed: the disk is bad" in job.describe()
    work.failure = None
    assert delete(all_jobs, work) is job
    work.end.release()
    all_jobs.wait(job)
    assert work.done == ["pvc-1"]


def test_a_deletion_that_failed_is_tried_again_by_itself(all_jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_FIRST_RETRY_SECONDS", 0.01)
    work = Work(failure=Refused("not yet"))
    delete(all_jobs, work)
    work.end.release()
    work.has_begun(2)
    work.failure = None
    work.end.release()
    _until(lambda: all_jobs.find("pvc-1") is None)
    assert work.done == ["pvc-1"]


def test_a_preparation_that_failed_is_left_to_whoever_asks_again(all_jobs: Jobs) -> None:
    work = Work(failure=Refused("no"))
    job = all_jobs.start(Kind.PREPARE, lv(), work)
    work.end.release()
    with pytest.raises(Refused, match="no"):
        all_jobs.wait(job)
    assert all_jobs.find("pvc-1") is None


def test_a_volume_that_a_call_holds_for_a_moment_is_no_failure(all_jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_BUSY_SECONDS", 0.01)
    work = Work(failure=Busy("held"))
    job = delete(all_jobs, work)
    work.end.release()
    work.has_begun(2)
    work.failure = None
    work.end.release()
    all_jobs.wait(job)
    assert job.failures == 0


def test_a_job_that_is_called_off_stops_at_its_next_slice_and_one_that_waits_never_runs(all_jobs: Jobs) -> None:
    work = Work()
    made = [all_jobs.start(Kind.PREPARE, lv(f"pvc-{number}"), work) for number in range(3)]
    work.has_begun(2)
    all_jobs.call_off("pvc-2", Kind.PREPARE)
    made[0].called_off.set()
    work.end.release(2)
    all_jobs.wait(made[1])
    with pytest.raises(Busy, match="NodeStageVolume of volume pvc-0 was called off"):
        all_jobs.wait(made[0])
    assert work.done == ["pvc-1"]


def test_only_a_job_of_that_kind_is_called_off(all_jobs: Jobs) -> None:
    work = Work()
    job = delete(all_jobs, work)
    all_jobs.call_off("pvc-1", Kind.PREPARE)
    work.end.release()
    all_jobs.wait(job)
    assert work.done == ["pvc-1"]


@pytest.mark.parametrize("other", [(Kind.PREPARE, "uuid-1"), (Kind.DELETE, "uuid-2")], ids=["kind", "LV"])
def test_work_of_another_kind_or_on_another_lv_of_that_name_is_another_job(
    all_jobs: Jobs, monkeypatch: pytest.MonkeyPatch, other: tuple[Kind, str]
) -> None:
    monkeypatch.setattr(jobs, "_FIRST_RETRY_SECONDS", 300.0)
    kind, uuid = other
    work = Work(failure=Refused("the disk is bad"))
    old = delete(all_jobs, work)
    work.has_begun()
    with pytest.raises(Busy, match="DeleteVolume of an earlier volume pvc-1 has not ended yet"):
        all_jobs.start(kind, lv(uuid=uuid), work)
    work.end.release()
    with pytest.raises(Refused):
        all_jobs.wait(old)
    work.failure = None
    new = all_jobs.start(kind, lv(uuid=uuid), work)
    assert new is not old
    work.end.release()
    all_jobs.wait(new)
    assert work.done == ["pvc-1"]
    with pytest.raises(Busy, match="DeleteVolume of volume pvc-1 was called off"):
        all_jobs.wait(old)


def test_one_running_deletion_steps_back_for_a_pod_and_goes_on_afterwards(all_jobs: Jobs) -> None:
    pod = Work()
    begun, advanced, stepped_back = (threading.Semaphore(0) for _ in range(3))
    leave, go_on = threading.Event(), threading.Event()

    def wipe(job: Job) -> None:
        begun.release()
        while not go_on.is_set():
            try:
                job.advance(1, 2)
            except SteppedBack:
                stepped_back.release()
                leave.wait(PATIENCE)
                raise
            advanced.release()
            go_on.wait(0.01)

    deletions = [delete(all_jobs, wipe, f"pvc-{number}") for number in range(jobs.WORKERS_PER_GROUP)]
    _taken(begun, jobs.WORKERS_PER_GROUP)
    stage = all_jobs.start(Kind.PREPARE, lv("pvc-pod"), pod)
    _taken(stepped_back)
    while advanced.acquire(blocking=False):
        pass
    _taken(advanced, 3)
    assert not stepped_back.acquire(blocking=False), "one is enough"
    leave.set()
    pod.has_begun()
    pod.end.release()
    all_jobs.wait(stage)
    _taken(begun)
    go_on.set()
    for job in deletions:
        all_jobs.wait(job)
        assert job.failures == 0


def test_of_the_jobs_that_are_due_a_pods_is_the_first(all_jobs: Jobs) -> None:
    work = Work()
    for number in range(4):
        delete(all_jobs, work, f"pvc-{number}")
    work.has_begun(jobs.WORKERS_PER_GROUP)
    all_jobs.start(Kind.PREPARE, lv("pvc-pod"), work)
    work.end.release(1)
    work.has_begun()
    assert all_jobs.find("pvc-pod").state is State.RUNNING  # type: ignore[union-attr]
    work.end.release(10)
    _until(lambda: not all_jobs.shown())


def test_a_thread_that_can_not_be_had_takes_no_workers_place(all_jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    with monkeypatch.context() as patch:
        without_threads(patch)
        for _ in range(jobs.WORKERS_PER_GROUP):
            with pytest.raises(Unavailable, match="no thread can be had for the work at volume group vg0"):
                delete(all_jobs, work)
    assert all_jobs.shown() == ()
    made = [delete(all_jobs, work, f"pvc-{number}") for number in range(jobs.WORKERS_PER_GROUP)]
    work.has_begun(jobs.WORKERS_PER_GROUP)
    work.end.release(jobs.WORKERS_PER_GROUP)
    for job in made:
        all_jobs.wait(job)


def test_where_no_further_thread_can_be_had_the_one_that_is_there_does_the_work(
    all_jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    first = delete(all_jobs, work)
    work.has_begun()
    without_threads(monkeypatch)
    second = delete(all_jobs, work, "pvc-2")
    work.end.release(2)
    for job in (first, second):
        all_jobs.wait(job)
    assert work.done == ["pvc-1", "pvc-2"]


def without_threads(patch: pytest.MonkeyPatch) -> None:
    """The machine has none left."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patch.setattr(threading.Thread, "start", fail)


def test_a_stop_ends_what_runs_between_two_slices_and_begins_nothing() -> None:
    stopped = Jobs()
    work = Work()
    for number in range(5):
        delete(stopped, work, f"pvc-{number}")
    work.has_begun(2)
    work.end.release(5)
    stopped.stop(PATIENCE)
    assert work.running == 0
    assert set(work.done) <= {"pvc-0", "pvc-1"}, "a job was begun after the stop"


def test_lines_of_a_job_carry_the_ids_of_the_call_that_began_it(all_jobs: Jobs) -> None:
    seen: list[dict[str, str]] = []
    with log.context(request_id="7"):
        job = delete(all_jobs, lambda job: seen.append(log.fields()))
    all_jobs.wait(job)
    assert seen == [{"request_id": "7", "job": "delete"}]


def test_a_job_that_is_called_off_raises_where_it_tells_its_progress() -> None:
    job = Job(kind=Kind.DELETE, lv=lv(), work=lambda _: None)
    job.advance(1, 2)
    job.called_off.set()
    with pytest.raises(Stopped):
        job.advance(2, 2)


def _taken(semaphore: threading.Semaphore, times: int = 1) -> None:
    for _ in range(times):
        assert semaphore.acquire(timeout=PATIENCE)


def _until(happened: Callable[[], bool]) -> None:
    for _ in range(2000):
        if happened():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never happened")
