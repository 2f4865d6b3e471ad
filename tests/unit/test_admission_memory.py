"""What a crowd of calls leaves behind is given back once, when its last call has ended."""

import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from csi.core import process
from csi.node.rpc import admission
from csi.node.rpc.admission import Admission, ThreadPerCall


class Now:
    """A timer that does not wait."""

    daemon = False

    def __init__(self, seconds: float, work: Callable[[], None]) -> None:
        self.start = work


METHOD = "/csi.v1.Controller/GetCapacity"


@pytest.mark.parametrize(("calls", "times"), [(1, 0), (15, 0), (16, 1), (100, 1)])
def test_memory_is_given_back_after_a_crowd_and_not_after_each_call(
    monkeypatch: pytest.MonkeyPatch, calls: int, times: int
) -> None:
    given_back: list[None] = []
    monkeypatch.setattr(process, "give_back_memory", lambda: given_back.append(None))
    monkeypatch.setattr("csi.node.rpc.admission.threading.Timer", Now)
    counted = Admission()
    with ExitStack() as running:
        for _ in range(calls):
            running.enter_context(counted.running(METHOD))
        assert not given_back
    assert len(given_back) == times
    with counted.running(METHOD):
        pass
    assert len(given_back) == times


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


def test_the_heap_is_shared_and_given_back_where_the_c_library_can() -> None:
    process.share_one_heap()
    process.give_back_memory()
