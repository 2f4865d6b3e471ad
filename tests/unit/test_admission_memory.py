"""What a crowd of calls leaves behind is given back once, when its last call has ended."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from csi.core import process
from csi.node.rpc.admission import Admission


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
    admission = Admission()
    with ExitStack() as running:
        for _ in range(calls):
            running.enter_context(admission.running(METHOD))
        assert not given_back
    assert len(given_back) == times
    with admission.running(METHOD):
        pass
    assert len(given_back) == times


def test_the_heap_is_shared_and_given_back_where_the_c_library_can() -> None:
    process.share_one_heap()
    process.give_back_memory()
