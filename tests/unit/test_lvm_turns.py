"""Who waits for LVM gets a turn, or an error that says why not; who is gone stops waiting; who hangs does not multiply."""

import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csi.core import command, files
from csi.core.command import LocalRunner
from csi.core.errors import CommandError, CommandTimeout, ToolFailed, Unavailable
from csi.node import caller
from csi.node.caller import Rank
from csi.node.lvm.command import Lvm
from csi.node.lvm.turns import Queue, Turns
from tests.fakes import lvm_is_there

PATIENCE = 20.0


class NoRunner:
    def run(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


@pytest.fixture
def lvm(tmp_path: Path) -> Lvm:
    return Lvm(NoRunner(), udev=False, lock_file=tmp_path / "lock")


@pytest.fixture
def busy(lvm: Lvm) -> Iterator[None]:
    """Another thread has its turn."""
    began, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lvm.turns.group("vg0", "a long lvcreate"):
            began.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert began.wait(PATIENCE)
    yield
    done.set()
    thread.join()


@pytest.mark.usefixtures("busy")
def test_a_turn_that_does_not_come_names_who_has_it(lvm: Lvm) -> None:
    with (
        pytest.raises(Unavailable, match=r"busy with 'a long lvcreate' for more than 0\.1 s"),
        lvm.turns.group("vg0", "b", 0.1),
    ):
        pytest.fail("it has no turn")


@pytest.mark.usefixtures("busy")
def test_who_is_not_wanted_any_more_stops_waiting(lvm: Lvm) -> None:
    answers = iter((True, True, False))
    began = time.monotonic()
    with (
        pytest.raises(Unavailable, match="caller went away while LVM was busy with 'a long lvcreate'"),
        lvm.turns.group("vg0", "b", still_wanted=lambda: next(answers)),
    ):
        pytest.fail("it has no turn")
    assert time.monotonic() - began < PATIENCE


@pytest.mark.usefixtures("busy")
def test_whether_the_caller_waits_need_not_be_passed_on(lvm: Lvm) -> None:
    with caller.waiting(lambda: False), pytest.raises(Unavailable, match="went away"), lvm.turns.group("vg0", "b"):
        pytest.fail("it has no turn")


def test_who_is_gone_does_not_wait_for_another_process_either(lvm: Lvm, tmp_path: Path) -> None:
    descriptor = files.take_named_lock(tmp_path / "lock", "vg0")
    assert descriptor is not None
    try:
        with (
            pytest.raises(Unavailable, match="another driver process"),
            lvm.turns.group("vg0", "b", still_wanted=lambda: False),
        ):
            pytest.fail("it has no turn")
    finally:
        os.close(descriptor)
    with lvm.turns.group("vg0", "c"):
        pass


def test_work_without_a_caller_is_always_wanted(lvm: Lvm) -> None:
    assert caller.still_waits()
    with lvm.turns.group("vg0", "start-up"):
        pass


# One LVM process a group


def test_a_look_does_not_run_lvm_beside_a_change_of_its_group(tmp_path: Path) -> None:
    running: list[str] = []
    met: list[tuple[str, ...]] = []
    entered, other = threading.Event(), threading.Event()

    class Runner:
        def run(self, argv: Any, **_: Any) -> Any:
            if lvm_is_there.is_first_look(argv):
                return lvm_is_there.answer(argv)
            running.append(argv[1])
            met.append(tuple(running))
            if argv[1] == "lvchange":
                entered.set()
                other.wait(0.5)
            else:
                other.set()
            running.remove(argv[1])
            raise ToolFailed("nothing is there")

    lvm = Lvm(Runner(), udev=False, lock_file=tmp_path / "lock")

    def tried(work: Callable[[], object]) -> None:
        with pytest.raises(ToolFailed):
            work()

    change = in_a_thread(lambda: tried(lambda: lvm._change("vg0", ["lvchange", "vg0/x"])))
    assert entered.wait(PATIENCE)
    look = in_a_thread(lambda: tried(lambda: lvm._ask("vg0", 1)))
    change.join()
    look.join()
    assert met == [("lvchange",), ("fullreport",)]


# Groups


def in_a_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def waiting(turns: Turns, group: str) -> int:
    queues = turns.queues()
    return queues[group].waiting if group in queues else 0


def test_one_group_does_not_wait_for_another(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "lock")
    entered = threading.Event()

    def other() -> None:
        with turns.group("vg1", "b"):
            entered.set()

    with turns.group("vg0", "a"):
        thread = in_a_thread(other)
        assert entered.wait(PATIENCE)
    thread.join()


def test_a_group_is_had_in_the_order_in_which_it_was_asked_for(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "lock")
    had: list[int] = []

    def take(number: int) -> Callable[[], None]:
        def work() -> None:
            with turns.group("vg0", str(number)):
                had.append(number)

        return work

    threads = []
    with turns.group("vg0", "the first"):
        for number in range(8):
            threads.append(in_a_thread(take(number)))
            until(lambda: waiting(turns, "vg0") == len(threads))
        assert turns.queues() == {"vg0": Queue(holder="the first", waiting=8)}
    for thread in threads:
        thread.join()
    assert had == list(range(8))
    assert turns.queues() == {}


def test_a_pod_goes_before_claims_and_these_before_deletions_that_came_earlier(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "lock")
    had: list[str] = []
    order = [("deletion 1", Rank.LAST), ("deletion 2", Rank.LAST), ("claim", Rank.CLAIM), ("pod", Rank.POD)]

    def take(name: str, rank: Rank) -> Callable[[], None]:
        def work() -> None:
            with caller.ranked(rank), turns.group("vg0", name):
                had.append(name)

        return work

    threads = []
    with turns.group("vg0", "the first"):
        for number, (name, rank) in enumerate(order, 1):
            threads.append(in_a_thread(take(name, rank)))
            until(lambda number=number: waiting(turns, "vg0") == number)
    for thread in threads:
        thread.join()
    assert had == ["pod", "claim", "deletion 1", "deletion 2"]


def test_who_gives_up_while_his_turn_comes_leaves_it_to_the_next(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "lock")
    left = threading.Event()

    def impatient() -> None:
        with pytest.raises(Unavailable), turns.group("vg0", "impatient", still_wanted=lambda: False):
            pytest.fail("nobody waits for this")
        left.set()

    with turns.group("vg0", "the first"):
        thread = in_a_thread(impatient)
        assert left.wait(PATIENCE)
    thread.join()
    with turns.group("vg0", "the next", 0.1):
        pass
    assert turns.queues() == {}


def test_never_two_have_one_group(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "lock")
    inside = {"vg0": 0, "vg1": 0}

    def work(group: str) -> None:
        for _ in range(10):
            with turns.group(group, "a"):
                inside[group] += 1
                time.sleep(0.001)
                assert inside[group] == 1
                inside[group] -= 1

    threads = [in_a_thread(functools.partial(work, f"vg{number % 2}")) for number in range(8)]
    for thread in threads:
        thread.join()
    assert inside == {"vg0": 0, "vg1": 0}


def test_who_has_a_group_may_take_it_again_and_still_has_it_then(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "lock")
    with turns.group("vg0", "a"):
        with turns.group("vg0", "b", wait_seconds=0.0):
            pass
        assert turns.queues()["vg0"].holder == "a"


def test_two_processes_exclude_each_other_group_by_group(tmp_path: Path) -> None:
    one, other = Turns(tmp_path / "lock"), Turns(tmp_path / "lock")
    with one.group("vg0", "a"):
        with other.group("vg1", "b", 0.05):
            pass
        with pytest.raises(Unavailable, match="another driver process"), other.group("vg0", "b", 0.05):
            pytest.fail("two processes have one group")


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Commands whose SIGKILL does nothing, as in the kernel's uninterruptible sleep."""
    children: list[subprocess.Popen[bytes]] = []
    start = command._start

    def started(*given: Any) -> subprocess.Popen[bytes]:
        children.append(start(*given))
        return children[-1]

    monkeypatch.setattr(command, "_start", started)
    monkeypatch.setattr(command.os, "killpg", lambda *_: None)
    monkeypatch.setattr(command, "_GIVE_UP_ON_PIPES_SECONDS", 0.05)
    yield children
    for child in children:
        child.kill()
        child.wait()


HANGS = ("sh", "-c", "exec sleep 1000")


def hang(runner: LocalRunner, program: str = "lvm") -> None:
    with pytest.raises(CommandTimeout):
        runner.run([program, "fullreport"], timeout=0.05)


def test_after_three_lvm_commands_that_hang_for_good_no_other_is_started(
    unkillable: list[subprocess.Popen[bytes]],
) -> None:
    runner = LocalRunner(HANGS)
    for _ in range(3):
        hang(runner)
    with pytest.raises(Unavailable, match=rf"hang in the kernel and can't be killed \(processes {unkillable[0].pid}, "):
        runner.run(["lvm", "version"], timeout=0.05)
    assert len(unkillable) == 3


def test_only_lvm_reads_all_disks_so_other_commands_go_on(unkillable: list[subprocess.Popen[bytes]]) -> None:
    runner = LocalRunner(HANGS)
    for _ in range(5):
        hang(runner, "blkid")
    hang(runner)
    assert len(unkillable) == 6


def test_a_command_that_did_end_is_forgotten(unkillable: list[subprocess.Popen[bytes]]) -> None:
    runner = LocalRunner(HANGS)
    for _ in range(3):
        hang(runner)
    os.kill(unkillable[1].pid, signal.SIGKILL)
    os.waitid(os.P_PID, unkillable[1].pid, os.WEXITED | os.WNOWAIT)
    hang(runner)
    with pytest.raises(Unavailable, match="hang in the kernel"):
        runner.run(["lvm", "version"], timeout=0.05)


def test_a_command_that_a_kill_ends_does_not_count() -> None:
    runner = LocalRunner(HANGS)
    for _ in range(5):
        hang(runner)


def test_before_lvm_was_seen_to_read_the_drivers_settings_no_command_of_it_runs(tmp_path: Path) -> None:
    """And it is looked at once, whoever comes first and however many come at once."""
    running: list[str] = []
    met: list[tuple[str, ...]] = []
    lock = threading.Lock()

    class Runner:
        def run(self, argv: Any, **_: Any) -> Any:
            with lock:
                running.append(argv[1])
                met.append(tuple(running))
            time.sleep(0.05)
            with lock:
                running.remove(argv[1])
            if lvm_is_there.is_first_look(argv):
                return lvm_is_there.answer(argv)
            raise ToolFailed("nothing is there")

    lvm = Lvm(Runner(), udev=False, lock_file=tmp_path / "lock")

    def look(vg: str) -> None:
        with pytest.raises(ToolFailed):
            lvm._ask(vg, 1)

    looks = [in_a_thread(functools.partial(look, vg)) for vg in ("vg0", "vg1", "vg2")]
    for one in looks:
        one.join()
    assert met[:2] == [("lvmconfig",), ("version",)]
    assert [verb for one in met[2:] for verb in one].count("lvmconfig") == 0
    assert sum(one[-1] == "version" for one in met) == 1


def test_where_lvm_does_not_read_the_drivers_settings_nothing_is_asked_of_it(tmp_path: Path) -> None:
    ran: list[str] = []

    class Runner:
        def run(self, argv: Any, **_: Any) -> Any:
            ran.append(argv[1])
            raise CommandError(tuple(argv), 5, "", "no such setting")

    lvm = Lvm(Runner(), udev=False, lock_file=tmp_path / "lock")
    for act in (lambda: lvm._ask("vg0", 1), lambda: lvm._change("vg0", ["lvchange", "vg0/x"]), lvm.version):
        with pytest.raises(ToolFailed, match=r"does not read the driver's lvm\.conf"):
            act()
    assert set(ran) == {"lvmconfig"}
