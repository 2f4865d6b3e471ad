"""Warm workers: a process that has imported all that an unlock needs, and forks itself for each request, one ahead.

So an unlock waits neither for Python's start nor for a fork, each has a process of its own that ends with its keys, and one
that dies takes nothing with it. The nursery itself does nothing that could fail; the front makes another one if it ends
anyway.
"""

import gc
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from csi.guest.serve import words

_NEVER_KILLED: Final = "-1000"
_AS_OTHERS: Final = "0"
_TAKEN: Final = b"+"
_OVER: Final = b"."
_PAUSE_MILLISECONDS: Final = 500
"""After a worker that died while it waited: what it died of may still be there."""


class Work(Protocol):
    """What a worker does with a packet from the front; it answers on the socket."""

    def __call__(self, packet: bytes, front: socket.socket) -> None:
        """Do it to the end. What it raises ends the worker, which the front notices."""
        ...


Ready = Callable[[], Work]
"""Does what can be done before there is a job and returns the work; called in each worker while it waits."""

Prepare = Callable[[], Ready]
"""Imports everything; called once, in the nursery."""


def spare_this_process() -> None:
    """Ask the kernel to take another process when memory is short: with this one the agent's connection would go."""
    _be_killed(_NEVER_KILLED)


def start(prepare: Prepare, strangers: Iterable[socket.socket]) -> tuple[int, socket.socket]:
    """Fork a nursery; returns its process id and the socket that it takes jobs on. `strangers` are this process's sockets,
    which the nursery closes.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = forked(lambda: _serve(prepare, theirs), [ours, *strangers])
    theirs.close()
    ours.setblocking(False)
    return process, ours


def hand_over(nursery: socket.socket, packet: bytes) -> socket.socket:
    """Give a job to a worker of its own; returns the socket that it answers on. Raises `OSError` when it can't be."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        socket.send_fds(nursery, [packet], [theirs.fileno()])
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return ours


def forked(run: Callable[[], None], strangers: Iterable[socket.socket]) -> int:
    """Run in a forked child, which closes `strangers` and ends when `run` does, whatever happens; returns its process id.

    For a process of one thread: a lock that another thread holds would be held in the child for ever.
    """
    process = os.fork()
    if process:
        return process
    status = 1
    _be_killed(_AS_OTHERS)
    try:
        for stranger in strangers:
            stranger.close()
        run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _serve(prepare: Prepare, jobs: socket.socket) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    # A worker is nobody's to wait for: its socket says when it ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    ready = prepare()
    # Looking for garbage would write into each object, and so copy most of this process in each worker.
    gc.collect()
    gc.freeze()
    while _one_has_worked(ready, jobs):
        pass


def _one_has_worked(ready: Ready, jobs: socket.socket) -> bool:
    """Have a worker that waits for a job; returns when it has taken one, or a moment after it died without: the job is
    there for the next. False when there will be no more.
    """
    ours, theirs = socket.socketpair()
    with ours:
        forked(partial(_wait_for_a_job, ready, jobs, theirs), [ours])
        theirs.close()
        said = ours.recv(1)
    if said == _TAKEN:
        return True
    front = select.poll()
    front.register(jobs, 0)  # Only its end.
    return said != _OVER and not front.poll(_PAUSE_MILLISECONDS)


def _wait_for_a_job(ready: Ready, jobs: socket.socket, nursery: socket.socket) -> None:
    # Not above: the front, which imports this module, has no use for it.
    from csi.core import process

    work = ready()
    # The worker before this one has its job at this moment.
    with process.stepped_back():
        process.own_memory()
    ends = select.poll()
    ends.register(jobs, select.POLLIN)
    ends.register(nursery, select.POLLIN)
    if jobs.fileno() not in (number for number, _ in ends.poll()):
        # The nursery has died, and the front hears of it when nobody has this socket any more.
        return
    packet, descriptors, _, _ = socket.recv_fds(jobs, words.MOST_BYTES + 64, 1)
    if not packet:
        nursery.send(_OVER)
        return
    with suppress(OSError):  # A nursery that has died needs no telling, and the job is ours all the same.
        nursery.send(_TAKEN)
    nursery.close()
    jobs.close()
    # Programs that the worker starts are its own to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=descriptors[0]) as front:
        work(packet, front)


def _be_killed(when: str) -> None:
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(when)
