"""What keeps a lease: what it does when it is renewed, late, lost, and when the volume is closed."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csi.core.errors import CommandError, SealedLocalError
from csi.guest.keeper import Keeper, Lost, Renewed
from csi.guest.lease_note import LeaseNote, LeaseNotes, LeaseState
from csi.guest.run import Signals, Trouble, supervise

NOTE = LeaseNote(
    volume_id="pvc-1",
    mount="/data",
    url="https://broker",
    ca_pem="",
    timeout_seconds=5.0,
    signer_pem="",
    secret="5e" * 32,
    seconds=60,
    asked=1000.0,
    go_on=False,
    supervised=False,
)


class World:
    """A keeper on a machine that notes what is done to it, at a time that the test sets."""

    def __init__(self, folder: Path, note: LeaseNote = NOTE) -> None:
        self.now = note.asked
        self.done: list[str] = []
        self.said: list[str] = []
        self.busy = self.stuck = self.closed = False
        self.notes = LeaseNotes(folder=folder)
        self.notes.write(note)
        self.keeper = Keeper(
            note,
            self.notes,
            self,  # type: ignore[arg-type]
            say=self.said.append,
            over=lambda: self.closed,
            clock=lambda: self.now,
        )

    def stop_writes(self, name: str) -> None:
        if self.stuck:
            raise SealedLocalError("dmsetup: no end")
        self.done.append("cut off")

    def make_read_only(self, target: str) -> None:
        assert target == "/data"
        if self.busy:
            raise CommandError(["mount"], 32, "", "mount point is busy")
        self.done.append("read-only")

    def at(self, seconds: float) -> bool:
        self.now = NOTE.asked + seconds
        return self.keeper.tick()

    @property
    def note(self) -> LeaseNote:
        found = self.notes.read("pvc-1")
        assert found is not None
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_lease_that_is_renewed_in_time_touches_nothing(world: World) -> None:
    for renewed in (20, 40, 60, 80):
        world.now = NOTE.asked + renewed
        world.keeper.hear(Renewed(asked=world.now, seconds=60))
        assert world.keeper.tick()
    assert (world.done, world.said, world.note.asked) == ([], [], NOTE.asked + 80)


def test_the_guest_stops_before_the_broker_counts_the_lease_as_over(world: World) -> None:
    world.busy = True
    assert next(second for second in range(70) if not world.at(second)) == 54
    assert world.done == ["cut off"]


def test_a_silent_broker_makes_the_volume_read_only_while_there_is_time(world: World) -> None:
    assert world.at(39)
    assert not world.at(40)
    assert world.done == ["read-only"]
    assert (world.note.state, "all that was written is on the disk" in world.note.text) == (LeaseState.LOST, True)
    assert "the broker could not be reached" in world.said[0]


def test_a_volume_with_open_files_is_cut_off_when_the_time_is_up(world: World) -> None:
    world.busy = True
    assert all(world.at(second) for second in (40, 45, 53))
    assert (world.done, world.note.state, len(world.said)) == ([], LeaseState.DOUBTFUL, 1)
    world.busy = False
    assert not world.at(53.5), "they were closed in time"
    assert world.done == ["read-only"]


def test_a_broker_that_answers_again_in_time_ends_the_doubt(world: World) -> None:
    world.busy = True
    assert world.at(45)
    world.keeper.hear(Renewed(asked=NOTE.asked + 45, seconds=60))
    assert world.at(60)
    assert (world.done, world.note.state, world.said[-1]) == ([], LeaseState.HELD, "pvc-1: the lease is renewed again")


def test_a_lease_that_another_guest_has_cuts_the_volume_off_at_once_and_flushes_nothing_before(world: World) -> None:
    world.keeper.hear(Lost("another guest has opened the volume"))
    assert not world.at(1)
    assert world.done == ["cut off", "read-only"]
    assert world.note.text.startswith("another guest has opened the volume. Nothing more is written to the disk")
    assert not world.at(2)
    assert world.done == ["cut off", "read-only"]


def test_a_volume_that_can_not_be_cut_off_is_tried_again_and_never_counts_as_cut_off(world: World) -> None:
    world.stuck = True
    world.keeper.hear(Lost("gone"))
    assert all(world.at(second) for second in (1, 2))
    assert (world.note.state, len(world.said)) == (LeaseState.DOUBTFUL, 1)
    world.stuck = False
    world.keeper.hear(Renewed(asked=NOTE.asked + 2, seconds=60))
    assert not world.at(3), "what was lost once stays lost"
    assert (world.done[0], world.note.state) == ("cut off", LeaseState.LOST)


def test_a_policy_that_goes_on_without_a_broker_stays_writable_until_the_broker_says_no(tmp_path: Path) -> None:
    world = World(tmp_path, replace(NOTE, go_on=True))
    assert all(world.at(second) for second in (40, 60, 6000))
    assert (world.done, world.note.state) == ([], LeaseState.DOUBTFUL)
    world.keeper.hear(Lost("another guest has it"))
    assert not world.at(6001)
    assert world.done[0] == "cut off"


def test_what_run_supervises_is_left_to_it_until_the_time_is_up(tmp_path: Path) -> None:
    world = World(tmp_path, replace(NOTE, supervised=True))
    assert all(world.at(second) for second in (40, 53))
    assert (world.done, world.note.state) == ([], LeaseState.DOUBTFUL)
    assert not world.at(54)
    assert world.done[0] == "cut off"


def test_a_closed_volume_needs_no_keeper(world: World) -> None:
    world.closed = True
    assert not world.at(100)
    assert world.done == []


def test_a_full_folder_is_told_and_the_lease_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LeaseNotes, "write", full)
    world.keeper.hear(Renewed(asked=NOTE.asked + 30, seconds=60))
    assert world.at(60)
    assert "can't be written: No space left on device" in world.said[0]


# `run`


def states(*notes: LeaseNote | None) -> Trouble:
    left = list(notes)
    return Trouble(lambda: left.pop(0) if len(left) > 1 else left[0], lambda _: None)


DOUBTFUL = replace(NOTE, state=LeaseState.DOUBTFUL, text="ends soon")
LOST = replace(NOTE, state=LeaseState.LOST, text="it is lost")


def test_the_command_is_told_once_to_end_when_the_lease_is_in_doubt_or_lost() -> None:
    trouble = states(None, NOTE, DOUBTFUL, DOUBTFUL, LOST)
    assert [trouble.signal() for _ in range(5)] == [None, None, signal.SIGTERM, None, None]
    assert trouble.text == "it is lost"
    assert [states(LOST).signal(), states(replace(DOUBTFUL, go_on=True)).signal()] == [signal.SIGTERM, None]


def test_a_command_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csi.guest.run._GRACE_SECONDS", -1.0)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    with Signals() as signals:
        assert supervise([sys.executable, "-c", stubborn], states(None, LOST), signals) == 128 + signal.SIGKILL


def test_a_signal_to_end_that_comes_while_the_volume_is_opened_starts_no_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_: pytest.fail("the command must not be started"))
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGWINCH)
        os.kill(os.getpid(), signal.SIGTERM)
        assert supervise(["worker"], states(None), signals) == 128 + signal.SIGTERM


def test_a_signal_that_comes_while_the_command_is_being_started_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> object:
        child = popen(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return child

    popen: Any = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with Signals() as signals:
        assert supervise(["sleep", "600"], states(None), signals) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# The copy of the process


def test_a_detached_copy_outlives_its_process_and_holds_nothing_of_it(tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    os.mkfifo(go)
    text = (
        "import signal; from pathlib import Path; from csi.core import process\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "def work():\n"
        f"    Path({str(go)!r}).read_text(); print('unheard')\n"
        f"    Path({str(done)!r}).write_text(signal.getsignal(signal.SIGTERM).name)\n"
        "process.start_detached(work); print('ended')\n"
    )
    # It returns at the end of its output, which a copy that held the pipe would keep open.
    first = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)
    assert (first.stdout, done.exists()) == ("ended\n", False)
    go.write_text("now")
    while not done.exists() or not done.read_text():
        pass
    assert done.read_text() == "SIG_DFL", "it ends when it is told to"
