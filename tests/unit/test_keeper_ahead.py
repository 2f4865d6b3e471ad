"""A keeper that waits ahead: it keeps the lease that it is told of, ends with who made it, and is not the only way."""

import os
import resource
import time
from pathlib import Path
from typing import Any, cast

import pytest

from csi.core import process
from csi.guest.lease_note import LeaseNote
from csi.guest.leases import Leases
from csi.guest.serve.keeper_ahead import KeeperAhead
from tests.unit.test_keeper import NOTE


class Notes:
    """A note's text in a file, as the other process reads it."""

    def __init__(self, known: LeaseNote) -> None:
        self.known = known

    def read(self, volume_id: str) -> LeaseNote | None:
        return self.known if volume_id == self.known.volume_id else None


class Played:
    """Leases whose keeper writes down whose it is, and who it is."""

    def __init__(self, folder: Path, known: LeaseNote) -> None:
        self.folder, self.notes = folder, Notes(known)
        self.started: list[str] = []

    def keep_or_say(self, kept: LeaseNote) -> None:
        part = self.folder / "part"
        core = resource.getrlimit(resource.RLIMIT_CORE)[0]
        part.write_text(f"{kept.volume_id} {os.getpid()} {os.getpriority(os.PRIO_PROCESS, 0)} {core}")
        part.rename(self.folder / "kept")

    def start_keeper(self, kept: LeaseNote) -> None:
        self.started.append(kept.volume_id)


@pytest.fixture
def leases(tmp_path: Path) -> Played:
    return Played(tmp_path, NOTE)


def read(path: Path) -> str:
    give_up = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return path.read_text()


def test_it_keeps_the_lease_that_it_is_told_of_in_a_process_of_its_own(leases: Played, tmp_path: Path) -> None:
    ahead = KeeperAhead(cast("Leases", leases))
    ahead.start(leases.notes.known)
    volume_id, pid, nice, core = read(tmp_path / "kept").split()
    assert volume_id == leases.notes.known.volume_id
    assert int(pid) != os.getpid()
    assert int(nice) == os.getpriority(os.PRIO_PROCESS, 0)
    assert core == "1", "it holds the lease's secret, so it is hardened"
    assert leases.started == []


def test_a_second_lease_and_one_whose_keeper_is_gone_get_another(leases: Played, tmp_path: Path) -> None:
    ahead = KeeperAhead(cast("Leases", leases))
    for _ in range(2):
        ahead.start(leases.notes.known)
    read(tmp_path / "kept")
    assert leases.started == [leases.notes.known.volume_id]


def test_one_that_was_killed_is_no_loss(leases: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        return

    monkeypatch.setattr(process, "start_detached", killed)
    KeeperAhead(cast("Leases", leases)).start(leases.notes.known)
    assert leases.started == [leases.notes.known.volume_id]


def test_it_ends_with_the_process_that_made_it(leases: Played, tmp_path: Path) -> None:
    before = children()
    ahead = KeeperAhead(cast("Leases", leases))
    (keeper,) = children() - before
    os.close(ahead._writer)
    assert os.waitpid(keeper, 0) == (keeper, 0)
    assert not (tmp_path / "kept").exists()


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
