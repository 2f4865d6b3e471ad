"""Workers that can't even get ready: they are not made again and again without a pause, nor after the front has ended."""

import os
from pathlib import Path

import pytest

from csi.guest.serve import nursery
from csi.guest.serve.nursery import Ready


def failing(tried: Path) -> Ready:
    def ready() -> nursery.Work:
        with tried.open("a") as file:
            file.write(".")
        raise MemoryError

    return ready


def test_a_worker_that_dies_while_it_waits_is_followed_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nursery, "_PAUSE_MILLISECONDS", 600_000)
    tried = tmp_path / "tried"
    process, jobs = nursery.start(lambda: failing(tried), [])
    while not tried.exists():
        pass
    jobs.close()
    # The end of the front ends the pause, and the nursery.
    assert os.waitpid(process, 0) == (process, 0)
    assert tried.read_text() == "."


def test_the_next_one_is_made_after_the_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery, "_PAUSE_MILLISECONDS", 1)
    tried = tmp_path / "tried"
    process, jobs = nursery.start(lambda: failing(tried), [])
    while not tried.exists() or len(tried.read_text()) < 3:
        pass
    jobs.close()
    assert os.waitpid(process, 0) == (process, 0)
