"""What a crowd of calls leaves behind is given back once, when its last call has ended."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from csi.core import process
from csi.node.rpc import admission
from csi.node.rpc.admission import Admission, ThreadPerCall

METHOD = "/csi.v1.Controller/GetCapacity"


class Quiet:
    """A clock that moves only while somebody sleeps; in the middle of each sleep the next of `meanwhile` happens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: list[Callable[[], object]] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds / 2
        if self.meanwhile:
            self.meanwhile.pop(0)()
        self.now += seconds / 2


class World:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.time = Quiet()
        self.given_back: list[float] = []
        self.waiting: list[Callable[[], None]] = []
        patch.setattr(process, "give_back_memory", lambda: self.given_back.append(self.time.now))
        patch.setattr(admission.threading, "Thread", self._thread)
        self.counted = Admission(self.time.clock, self.time.sleep)

    def _thread(self, *, target: Callable[[], None], **_: object) -> SimpleNamespace:
        return SimpleNamespace(start=lambda: self.waiting.append(target))

    def calls(self, number: int) -> None:
        with ExitStack() as running:
            for _ in range(number):
                running.enter_context(self.counted.running(METHOD))

    def wait(self) -> None:
        while self.waiting:
            self.waiting.pop()()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize(("calls", "times"), [(15, 0), (16, 1), (100, 1)])
def test_memory_is_given_back_after_a_crowd_and_not_after_each_call(world: World, calls: int, times: int) -> None:
    world.calls(calls)
    world.wait()
    assert len(world.given_back) == times
    if times:
        world.calls(15)
        world.wait()
        assert len(world.given_back) == 1
        world.calls(1)
        world.wait()
        assert len(world.given_back) == 2


def test_calls_of_a_crowd_need_not_overlap(world: World) -> None:
    for _ in range(16):
        world.calls(1)
    world.wait()
    assert len(world.given_back) == 1


def test_it_is_given_back_when_the_last_call_has_ended_for_a_moment_and_not_in_the_midst(world: World) -> None:
    straggler = ExitStack()
    world.time.meanwhile = [
        lambda: world.calls(1),
        lambda: straggler.enter_context(world.counted.running(METHOD)),
        lambda: world.calls(30),
        straggler.close,
        lambda: ended.append(world.time.now),
    ]
    ended: list[float] = []
    straggler.callback(lambda: ended.append(world.time.now))
    world.calls(16)
    world.wait()
    assert world.given_back == [ended[0] + admission._SETTLED_SECONDS]
    assert len(ended) == 2
    assert not world.waiting


def ended() -> bool:
    return not any(thread.name == "rpc" for thread in threading.enumerate())


def test_a_thread_that_has_waited_in_vain_ends_and_the_next_call_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_FREE_SECONDS", 0)
    threads = ThreadPerCall()
    for number in range(20):
        assert threads.submit(lambda number=number: number).result(60) == number
        while not ended():
            pass


def test_calls_at_once_get_a_thread_each_and_few_of_them_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_FREE_SECONDS", 600)
    threads, together = ThreadPerCall(), threading.Barrier(30)
    for _ in range(3):
        calls = [threads.submit(together.wait) for _ in range(30)]
        assert sorted(call.result(60) for call in calls) == list(range(30))
    while sum(thread.name == "rpc" for thread in threading.enumerate()) > admission._FREE_THREADS:
        pass
    monkeypatch.setattr(admission, "_FREE_SECONDS", 0)
    # Each of those that wait takes one more call, and ends.
    both = threading.Barrier(admission._FREE_THREADS)
    for call in [threads.submit(both.wait) for _ in range(admission._FREE_THREADS)]:
        call.result(60)
    while not ended():
        pass


def test_a_call_for_which_no_thread_can_be_had_is_taken_by_the_next_one_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, go_on = ThreadPerCall(), threading.Event()
    running = threads.submit(go_on.wait, 60)
    without_threads(monkeypatch)
    late = [threads.submit(lambda number=number: number) for number in range(3)]
    assert not any(call.done() for call in late)
    go_on.set()
    assert running.result(60)
    assert [call.result(60) for call in late] == [0, 1, 2]


def test_what_no_thread_could_be_had_for_is_done_when_there_are_threads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = ThreadPerCall()
    with monkeypatch.context() as patch:
        without_threads(patch)
        late = threads.submit(lambda: "late")
    assert threads.submit(lambda: "new").result(60) == "new"
    assert late.result(60) == "late"


def test_a_crowd_for_whose_end_no_thread_can_be_had_is_still_counted_right(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    start = admission.threading.Thread

    def none(**_: object) -> SimpleNamespace:
        def fail() -> None:
            raise RuntimeError("can't start new thread")

        return SimpleNamespace(start=fail)

    monkeypatch.setattr(admission.threading, "Thread", none)
    world.calls(20)
    assert not any(calls.total() for calls in world.counted._running.values())
    monkeypatch.setattr(admission.threading, "Thread", start)
    world.calls(20)
    world.wait()
    assert len(world.given_back) == 1, "the next crowd's memory is never given back"


def without_threads(patch: pytest.MonkeyPatch) -> None:
    """The machine has none left."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patch.setattr(threading.Thread, "start", fail)


def test_the_heap_is_shared_and_given_back_where_the_c_library_can() -> None:
    process.share_one_heap()
    process.give_back_memory()
