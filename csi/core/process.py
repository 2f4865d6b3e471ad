"""What a process does to itself: one that handles keys allows no core dumps, no swap of its memory and no tracing by
others; a thread with long work steps back behind others; a server of many threads keeps little memory; a copy goes on.
"""

import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)
_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT_FUTURE_ON_FAULT: Final = 7
"""Each page from its first use on: one that was never touched holds no secret, and fetching all of them takes its time."""
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS: Final = 1
_M_ARENA_MAX: Final = -8
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 64 << 10
_MADV_POPULATE_WRITE: Final = 23
_LAST: Final = 19
_IOPRIO_BEST_EFFORT_LAST: Final = 2 << 13 | 7


def harden() -> None:
    """Forbid core dumps and tracing, and lock memory where that is permitted; a refusal of the lock is only logged.

    The limit of core dumps is inherited by the tools that get keys. It is 1, not 0: to a pipe in core_pattern the kernel
    dumps whatever the limit is, but for 1 (core(5)).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    bounded = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY and os.geteuid() != 0
    # Under a bound the lock may succeed now and let a later thread fail for want of locked memory.
    if bounded or libc.mlockall(_MCL_CURRENT_FUTURE_ON_FAULT) != 0:
        _log.info("memory is not locked, so it may be swapped out", extra={"bounded": bounded})


def start_detached(work: Callable[[], None], *, told_by: int | None = None) -> None:
    """Do `work` in a copy of this process that outlives it and holds nothing of it: its locks, its connections, the pipes
    that somebody reads to their end, its answers to signals. Its parent is init once this process has ended; nobody waits
    for it. For a process of one thread.

    `told_by`: a descriptor that becomes the copy's standard input.
    """
    if os.fork() != 0:
        return
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(nothing, descriptor)
        os.dup2(nothing if told_by is None else told_by, 0)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        _forget_signal_handlers()
        work()
    finally:
        # Nothing of the caller's clean-up is for a copy.
        os._exit(0)


def _forget_signal_handlers() -> None:
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def share_one_heap() -> None:
    """Let all threads allocate from one heap (mallopt(3)), and large texts outside it: Python runs one of them at a time,
    and heaps of their own are memory that none gives back. Where the C library has no such setting nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        # By itself the C library raises this bound with the first large text, and keeps the next ones among small objects.
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def own_memory() -> None:
    """Have this process's memory for itself now: a copy shares each page with the process that it is of until one of them
    writes there, and then waits for a page of its own. Linux before 5.14 can't, and nothing changes.
    """
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        where, allowed, *_ = line.split()
        if allowed == b"rw-p":
            first, _, end = where.partition(b"-")
            start = int(first, 16)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(int(end, 16) - start), _MADV_POPULATE_WRITE)


@contextmanager
def stepped_back() -> Iterator[None]:
    """Let other processes go first meanwhile. Only for one that may step forward again, which root alone may."""
    if os.geteuid() != 0:
        yield
        return
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, _LAST)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


def give_back_memory() -> None:
    """Return what is not needed any more to the kernel (malloc_trim(3)), where the C library can. What holds itself by a
    circle of references counts as needed until the collector looks.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def lower_io_priority() -> None:
    """Let other threads' reads and writes go before those of the calling thread (ioprio_set(2)); not every disk's scheduler
    heeds it, so a refusal is only logged.
    """
    number = _IOPRIO_SET.get(os.uname().machine)
    libc = ctypes.CDLL(None, use_errno=True)
    if number is None or libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_BEST_EFFORT_LAST) != 0:
        _log.info("I/O priority is not lowered", extra={"machine": os.uname().machine})


def write_back(descriptor: int) -> None:
    """Write back everything of the filesystem of an open file: syncfs(2).

    Raises `OSError` when that fails, or, from Linux 5.8 on, when an earlier write-back failed and nobody was told.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(ctypes.c_int(descriptor)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
