"""What hardening does to a process, seen from the process and from outside: each in a child, since it can't be undone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csi.core import process

ROOT = Path(__file__).resolve().parents[2]
PR_GET_DUMPABLE = 3


def hardened(question: str, before: str = "") -> str:
    """What a hardened process prints about itself, after `before` was run in it."""
    script = f"import ctypes, os, resource\nfrom csi.core import process\n{before}\nprocess.harden()\nprint({question})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nobody_of_the_same_user_may_trace_or_dump_it() -> None:
    assert hardened(f"ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0)") == "0"


def test_a_core_dump_is_cut_to_nothing_even_into_a_pipe() -> None:
    # 1 and not 0: core(5) says that a pipe in core_pattern gets a dump whatever the limit, but for 1.
    assert hardened("resource.getrlimit(resource.RLIMIT_CORE)") == "(1, 1)"


def may_lock() -> bool:
    script = "import ctypes; print(ctypes.CDLL(None).mlockall(3))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "0"


LOCKED = "next(line for line in open('/proc/self/status') if line.startswith('VmLck')).split()[1]"
LOGGED = "import logging, sys; logging.basicConfig(level='INFO', stream=sys.stdout, format='%(message)s %(bounded)s')"


def bounded_by(limit: str, user: int) -> str:
    return f"resource.getrlimit = lambda _: ({limit}, {limit}); os.geteuid = lambda: {user}"


@pytest.mark.skipif(not may_lock(), reason="this user may not lock memory")
@pytest.mark.parametrize(("limit", "user"), [("1 << 30", 0), ("resource.RLIM_INFINITY", 1000)])
def test_its_memory_is_locked_where_nothing_bounds_that(limit: str, user: int) -> None:
    before = f"{LOGGED}\n{bounded_by(limit, user)}"
    assert int(hardened(LOCKED, before)) > 1024
    # What is mapped later is locked, too.
    assert int(hardened(f"(kept := bytearray(64 << 20)) and {LOCKED}", before)) > 64 << 10


@pytest.mark.skipif(not may_lock(), reason="this user may not lock memory")
def test_under_a_bound_nothing_is_locked_so_that_no_later_thread_fails_and_that_is_told() -> None:
    told, locked = hardened(LOCKED, f"{LOGGED}\n{bounded_by('1 << 30', 1000)}").splitlines()
    assert (told, locked) == ("memory is not locked, so it may be swapped out True", "0")


def test_a_refusal_of_the_lock_is_told_and_no_error() -> None:
    refusing = "fake = lambda *_, **__: type('Libc', (), {'prctl': print, 'mlockall': lambda _, flags: -1})()"
    before = f"{LOGGED}\n{bounded_by('1 << 30', 0)}\n{refusing}\nprocess.ctypes.CDLL = fake"
    told = hardened("'alive'", before).splitlines()
    assert told[-2:] == ["memory is not locked, so it may be swapped out False", "alive"]


def test_writing_back_tells_what_the_kernel_says(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        process.write_back(file.fileno())
        closed = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        process.write_back(closed)


def test_a_thread_with_long_work_steps_back_and_the_others_do_not() -> None:
    tool = shutil.which("ionice", path="/usr/bin:/bin")
    if tool is None:
        pytest.skip("no ionice")
    shown = "lambda: subprocess.run(['ionice', '-p', str(threading.get_native_id())], capture_output=True, text=True)"
    script = f"""import subprocess, threading
from csi.core import process
shown = {shown}
def work():
    process.lower_io_priority()
    print(shown().stdout.strip())
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(shown().stdout.strip())"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    own, other = done.stdout.splitlines()
    assert own == "best-effort: prio 7"
    assert other != own


def in_a_copy(script: str) -> str:
    """What a copy of a process prints that has 8 MiB of its own."""
    first = "import os, sys\nfrom csi.core import process\nheld = bytearray(8 << 20)\nsys.stdout.flush()\n"
    forked = first + "pid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\n    os._exit(0)\n" + script
    done = subprocess.run([sys.executable, "-c", forked], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


SHARED = """
def shared():
    lines = open("/proc/self/smaps").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Shared_Dirty:"))
before = shared()
process.own_memory()
print(before, shared())
"""


@pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (5, 14), reason="the kernel is older than 5.14"
)
def test_a_copy_can_have_its_memory_for_itself() -> None:
    before, after = map(int, in_a_copy(SHARED).split())
    assert before > 8 << 10
    assert after < 1 << 10


def test_whoever_steps_back_steps_forward_again() -> None:
    script = "print(os.nice(0))\nwith process.stepped_back():\n    print(os.nice(0))\nprint(os.nice(0))"
    before, meanwhile, after = map(int, in_a_copy(script).split())
    assert (after, meanwhile) == (before, 19 if os.geteuid() == 0 else before)
