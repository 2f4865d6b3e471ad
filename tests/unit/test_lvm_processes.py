"""Two driver processes, as an update may leave them for a while, take turns at LVM."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi.core.errors import Unavailable
from csi.node.lvm.command import Lvm

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from csi.node.lvm.command import Lvm
with Lvm(None, udev=False, lock_file=Path(sys.argv[1])).turns.group("vg0", "elsewhere"):
    print("mine", flush=True)
    sys.stdin.readline()
print("done", flush=True)
sys.stdin.readline()
"""


class NoRunner:
    def run(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


@pytest.fixture
def lvm(tmp_path: Path) -> Lvm:
    return Lvm(NoRunner(), udev=False, lock_file=tmp_path / "lock")


@contextmanager
def another_process(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has its turn."""
    argv = [sys.executable, "-c", HOLD, str(lock)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, cwd=ROOT, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        try:
            yield other
        finally:
            other.kill()


def test_while_another_process_has_its_turn_nobody_here_gets_one(lvm: Lvm, tmp_path: Path) -> None:
    with (
        another_process(tmp_path / "lock"),
        pytest.raises(Unavailable, match="another driver process holds"),
        lvm.turns.group("vg0", "b", 0.1),
    ):
        pytest.fail("two processes have their turn")


def test_when_the_other_gives_its_turn_up_it_comes_here(lvm: Lvm, tmp_path: Path) -> None:
    with another_process(tmp_path / "lock") as other:
        asked = 0

        def still_wanted() -> bool:
            """Called while this process waits: at the second time the other one is told to go on."""
            nonlocal asked
            asked += 1
            if asked == 2:
                assert other.stdin is not None
                other.stdin.write("\n")
                other.stdin.flush()
            return True

        with lvm.turns.group("vg0", "b", still_wanted=still_wanted):
            assert asked >= 2


def test_the_turn_of_a_killed_process_is_over(lvm: Lvm, tmp_path: Path) -> None:
    with another_process(tmp_path / "lock") as other:
        other.kill()
        other.wait()
        with lvm.turns.group("vg0", "b", 0.1):
            pass


def test_another_group_is_free_meanwhile(lvm: Lvm, tmp_path: Path) -> None:
    with another_process(tmp_path / "lock"), lvm.turns.group("vg1", "b", 0.1):
        pass
