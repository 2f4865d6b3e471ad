"""The front: owns the socket at the confidential-data-hub's path and every connection to it.

One small process with one thread that waits for nothing but sockets. A stock kata-agent connects once and never again, so
whatever could end a process, from the broker's answer to cryptsetup, happens in others.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from csi.guest.serve import answers, nursery, words
from csi.guest.serve.answers import Code
from csi.guest.serve.client import Client
from csi.guest.serve.frames import Frame
from csi.guest.serve.link import Link
from csi.guest.serve.nursery import Prepare
from csi.guest.serve.proto.ttrpc_pb2 import Request

_TRY_AGAIN_SECONDS: Final = 0.05
_IN: Final = select.POLLIN
_OUT: Final = select.POLLOUT

Handle = Callable[[int], None]
"""Is told which events a socket has."""


@dataclass(kw_only=True, eq=False)
class _Job:
    """What one worker was asked for, and what came of it."""

    worker: socket.socket
    client: Client | None
    frame: Frame | None
    watches: bytes = b""
    """The id of the open volume that the worker has said it looks after; one that dies before it says so has no heir."""


def listen(path: Path) -> socket.socket:
    """A listening socket that appears under its name only when it listens: the agent connects once, as soon as the name is
    there. Whatever had the name before is replaced.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    unnamed = path.with_name(f".{path.name}.{os.getpid()}")
    unnamed.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o077)
    try:
        listener.bind(str(unnamed))
    finally:
        os.umask(mask)
    listener.listen(64)
    listener.setblocking(False)
    unnamed.rename(path)
    return listener


class Front:
    """See above. `behind` is the path of the confidential-data-hub's socket, if there is one, and `hub` what keeps it
    running; `say` is told what happens.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        prepare: Prepare,
        behind: str | None,
        hub: socket.socket | None,
        say: Callable[[str], None],
    ) -> None:
        self._hub = hub
        self._listener, self._prepare, self._behind, self._say = listener, prepare, behind, say
        self._clients: list[Client] = []
        self._jobs: list[_Job] = []
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._stopped = False
        self._nursery: tuple[int, socket.socket] | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._start_nursery()
        while not self._stopped:
            self._turn()

    def _turn(self) -> None:
        poll, handlers = select.poll(), {}
        for end, wanted, handle in self._ends():
            poll.register(end, wanted)
            handlers[end.fileno()] = handle
        waits = any(client.waits for client in self._clients)
        for descriptor, events in poll.poll(_TRY_AGAIN_SECONDS * 1000 if waits else None):
            handlers[descriptor](events)
        for client in self._clients:
            client.reach_behind(time.monotonic())
        self._clients = [client for client in self._clients if client.is_open]

    def _ends(self) -> Iterator[tuple[socket.socket, int, Handle]]:
        yield self._woken, _IN, lambda _: None
        yield self._listener, _IN, self._accept
        if self._nursery is not None:
            yield self._nursery[1], _IN, self._nursery_ended
        for job in self._jobs:
            yield job.worker, _IN, partial(self._from_worker, job)
        for client in self._clients:
            yield client.link.socket, _events(client.link, client.behind), partial(_serve, client)
            if client.behind is not None:
                yield client.behind.socket, _events(client.behind, client.link), partial(_serve_behind, client)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopped = True

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        self._clients.append(Client(Link(connection), behind=self._behind, mount=self._mount))

    # Workers

    def _mount(self, client: Client, frame: Frame, request: Request) -> None:
        packet = words.MOUNT + request.payload
        if len(packet) > words.MOST_BYTES:
            text = f"a SecureMount of {len(packet)} bytes is not taken"
            client.answer(frame.stream, answers.failure(Code.INVALID_ARGUMENT, text))
        elif not self._hand_over(packet, client, frame):
            text = "no worker can be had at this moment; ask again"
            client.answer(frame.stream, answers.failure(Code.UNAVAILABLE, text))

    def _hand_over(self, packet: bytes, client: Client | None, frame: Frame | None) -> bool:
        if self._nursery is None:
            self._start_nursery()
        try:
            worker = nursery.hand_over(self._nursery[1], packet) if self._nursery else None
        except OSError:
            worker = None
        if worker is not None:
            self._jobs.append(_Job(worker=worker, client=client, frame=frame))
        return worker is not None

    def _from_worker(self, job: _Job, _events: int) -> None:
        try:
            packet = job.worker.recv(words.MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        kind, content = packet[:1], packet[1:]
        if kind == words.WATCH:
            job.watches = content
        elif kind == words.ANSWER and job.client is not None and job.frame is not None:
            job.client.answer(job.frame.stream, content)
            job.client = None
        elif kind == words.PASS_ON and job.client is not None and job.frame is not None:
            if job.client.is_open:
                job.client.relay(job.frame, time.monotonic())
            job.client = None
        elif kind == words.DONE:
            job.watches = b""
        elif not packet:
            self._worker_ended(job)

    def _worker_ended(self, job: _Job) -> None:
        self._jobs.remove(job)
        job.worker.close()
        if job.client is not None and job.frame is not None:
            text = "the worker ended before it answered; ask again: what it had done is found and taken up"
            self._say(text)
            job.client.answer(job.frame.stream, answers.failure(Code.UNAVAILABLE, text))
        if job.watches:
            self._say(f"who looked after volume {job.watches.decode()} ended; another one does now")
            self._hand_over(words.WATCH + job.watches, None, None)

    def _start_nursery(self) -> None:
        strangers = [self._listener, self._woken, self._waker, *(job.worker for job in self._jobs)]
        if self._hub is not None:
            # It ends when this process does, and a worker may live on.
            strangers.append(self._hub)
        for client in self._clients:
            strangers += [client.link.socket, *([client.behind.socket] if client.behind is not None else [])]
        self._nursery = nursery.start(self._prepare, strangers)

    def _nursery_ended(self, _events: int) -> None:
        """The next request starts another one: one that can't live must not be started in a circle."""
        if self._nursery is not None:
            self._say("the process that workers come from ended; the next request starts another one")
            process, jobs = self._nursery
            self._nursery = None
            jobs.close()
            os.waitpid(process, 0)


def _events(link: Link, other: Link | None) -> int:
    full = other is not None and other.is_full
    return (0 if full else _IN) | (_OUT if link.waits_to_send else 0)


def _serve(client: Client, events: int) -> None:
    if events & _OUT:
        client.link.flush()
    if events & ~_OUT:
        client.receive(time.monotonic())


def _serve_behind(client: Client, events: int) -> None:
    if client.behind is None:
        return
    if events & _OUT:
        client.behind.flush()
    if events & ~_OUT:
        client.receive_from_behind()
