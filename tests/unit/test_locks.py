"""One operation a volume at a time: the second is told who has it, soon, and nobody keeps a lock by failing."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from csi.core import files
from csi.core.errors import Busy
from csi.node.locks import VolumeLocks


def test_a_second_operation_is_refused_with_the_name_of_the_first() -> None:
    locks = VolumeLocks()
    with (
        locks.hold("pvc-1", "CreateVolume"),
        pytest.raises(Busy, match="CreateVolume of volume pvc-1 is still running; repeat when it has ended"),
        locks.hold("pvc-1", "DeleteVolume"),
    ):
        pytest.fail("two operations have the volume")


def test_a_refused_operation_leaves_the_lock_with_its_holder() -> None:
    locks = VolumeLocks()
    with locks.hold("pvc-1", "CreateVolume"):
        for _ in range(2):
            with pytest.raises(Busy, match="CreateVolume"), locks.hold("pvc-1", "DeleteVolume"):
                pytest.fail("two operations have the volume")


def test_operations_of_different_volumes_do_not_wait_for_one_another() -> None:
    locks = VolumeLocks()
    with locks.hold("pvc-1", "NodeStageVolume"), locks.hold("pvc-2", "NodeStageVolume"):
        pass


def test_a_lock_can_be_taken_again_when_it_was_given_back() -> None:
    locks = VolumeLocks()
    for _ in range(2):
        with locks.hold("pvc-1", "CreateVolume"):
            pass


def test_an_operation_that_fails_gives_the_lock_back() -> None:
    locks = VolumeLocks()
    with pytest.raises(RuntimeError, match="failed"), locks.hold("pvc-1", "CreateVolume"):
        raise RuntimeError("failed")
    with locks.hold("pvc-1", "CreateVolume"):
        pass


def test_of_many_threads_exactly_one_gets_the_volume() -> None:
    locks, all_ready, all_tried = VolumeLocks(), threading.Barrier(8), threading.Barrier(8)
    outcomes: list[str] = []

    def take() -> None:
        all_ready.wait(20)
        try:
            with locks.hold("pvc-1", "CreateVolume"):
                outcomes.append("held")
                all_tried.wait(20)
        except Busy:
            outcomes.append("busy")
            all_tried.wait(20)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["busy"] * 7 + ["held"]


def test_another_driver_process_that_works_on_the_volume_is_respected_and_no_other_volume(tmp_path: Path) -> None:
    file = tmp_path / "volumes.lock"
    script = (
        "import sys; from pathlib import Path; from csi.core import files;"
        "assert files.take_named_lock(Path(sys.argv[1]), 'pvc-1') is not None;"
        "print('locked', flush=True); sys.stdin.read()"
    )
    locks = VolumeLocks(file)
    argv = [sys.executable, "-c", script, str(file)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(Busy, match="another driver process works on volume pvc-1"), locks.hold("pvc-1", "Stage"):
            pytest.fail("two processes have the volume")
        with locks.hold("pvc-2", "Stage"):
            pass
        other.kill()
        other.wait()
    with locks.hold("pvc-1", "Stage"):
        pass


def test_threads_and_descriptors_of_one_process_exclude_one_another_too(tmp_path: Path) -> None:
    first = files.take_named_lock(tmp_path / "lock", "pvc-1")
    assert first is not None
    assert files.take_named_lock(tmp_path / "lock", "pvc-1") is None
    os.close(first)
    again = files.take_named_lock(tmp_path / "lock", "pvc-1")
    assert again is not None
    os.close(again)


def test_a_refused_lock_leaves_no_descriptor_open(tmp_path: Path) -> None:
    first = files.take_named_lock(tmp_path / "lock", "pvc-1")
    assert first is not None
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        assert files.take_named_lock(tmp_path / "lock", "pvc-1") is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(first)


@pytest.mark.parametrize("fails", [False, True])
def test_when_an_operation_ends_another_process_gets_the_volume(tmp_path: Path, fails: bool) -> None:
    locks = VolumeLocks(tmp_path / "lock")
    with contextlib.suppress(ZeroDivisionError), locks.hold("pvc-1", "Stage"):
        assert files.take_named_lock(tmp_path / "lock", "pvc-1") is None
        if fails:
            raise ZeroDivisionError
    # Locks of this kind belong to descriptors, so this one stands for another process's.
    again = files.take_named_lock(tmp_path / "lock", "pvc-1")
    assert again is not None
    os.close(again)


def test_a_second_operation_gets_the_volume_when_the_first_ends_in_a_moment() -> None:
    locks = VolumeLocks(patience_seconds=60.0)
    held, let_go = threading.Event(), threading.Event()

    def first() -> None:
        with locks.hold("pvc-1", "CreateVolume"):
            held.set()
            let_go.wait(60)

    one = threading.Thread(target=first)
    one.start()
    held.wait(60)
    threading.Timer(0.1, let_go.set).start()
    with locks.hold("pvc-1", "NodeStageVolume"):
        assert let_go.is_set()
    one.join()


def test_a_second_operation_is_refused_when_the_first_does_not_end_in_a_moment() -> None:
    locks = VolumeLocks(patience_seconds=0.01)
    with (
        locks.hold("pvc-1", "CreateVolume"),
        pytest.raises(Busy, match="CreateVolume of volume"),
        locks.hold("pvc-1", "DeleteVolume"),
    ):
        pytest.fail("two operations have one volume")
