"""How many calls may run at once, so that one kind of call can't keep every other one waiting.

gRPC's server has one set of threads for all calls. Were it bounded, a hundred calls that hang (a disk that doesn't answer)
would leave none for Probe, and kubelet would kill the container. So every call gets a thread at once, and calls beyond
their number are answered at once: a thread is never what a call waits for.
"""

import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final

import grpc

from csi.core import process
from csi.core.errors import Unavailable

_log = logging.getLogger(__name__)

_IDENTITY: Final = "/csi.v1.Identity/"
_TEARDOWN: Final = frozenset({"NodeUnpublishVolume", "NodeUnstageVolume"})


class Kind(Enum):
    """What a call is for; each kind has a number of its own."""

    IDENTITY = "identity"
    """Runs nothing, ends at once, is never turned away: the liveness probe lives on it."""
    TEARDOWN = "teardown"
    """A pod that ends must not wait for volumes that begin or are deleted."""
    OTHER = "other"


_FREE_THREADS: Final = 2
_FREE_SECONDS: Final = 1.0
_SETTLED_SECONDS: Final = 1.25
_CROWD: Final = 16
"""So many calls in a row leave memory behind that is worth to be given back. They need not overlap: gRPC takes them from
the socket all at once."""

_AT_ONCE: Final = {Kind.TEARDOWN: 64, Kind.OTHER: 192}
"""A provisioner works at 100 volumes at once, and kubelet at as many as the node has pods."""


def kind(method: str) -> Kind:
    """The kind of a method by its full name, as `/csi.v1.Node/NodeUnpublishVolume`."""
    if method.startswith(_IDENTITY):
        return Kind.IDENTITY
    return Kind.TEARDOWN if method.rpartition("/")[2] in _TEARDOWN else Kind.OTHER


class ThreadPerCall(futures.ThreadPoolExecutor):
    """A thread for each call at once. A few that are done wait a moment for the next call, as kubelet and the provisioner
    make several in a row; more of them, or longer, would keep their memory for ever.

    A pool in gRPC's eyes only. Threads are no daemons: a process that stops waits for the steps that they have begun.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._free = 0
        """Threads that wait, less the tasks that are there for them; below zero, tasks that wait for any thread's end."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "futures.Future[Any]":
        """See `Executor.submit`. What it raised would end gRPC's own thread, and with it the server."""
        future: futures.Future[Any] = futures.Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            if self._free <= 0 and self._begun(run):
                return future
            self._free -= 1
            self._tasks.put(run)
        return future

    def _begun(self, task: Callable[[], None]) -> bool:
        """Whether a thread could be had for the task. Where none can, the next one that is free takes it."""
        try:
            threading.Thread(target=self._work, args=(task,), name="rpc").start()
        except RuntimeError as error:
            _log.warning("no thread can be had for a call; it waits for another one's end", extra={"error": str(error)})
            return False
        return True

    def _work(self, task: Callable[[], None] | None) -> None:
        while task is not None:
            task()
            # What the call has made may be large.
            del task
            task = self._next()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self._free >= _FREE_THREADS:
                return None
            self._free += 1
        with contextlib.suppress(queue.Empty):
            return self._tasks.get(timeout=_FREE_SECONDS)
        with self._lock:
            # A call may have counted on this thread just now.
            with contextlib.suppress(queue.Empty):
                return self._tasks.get_nowait()
            self._free -= 1
        return None


class Admission(grpc.ServerInterceptor):
    """Counts running calls and turns away those beyond the number of their kind."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._running: dict[Kind, Counter[str]] = {one: Counter() for one in _AT_ONCE}
        self._ended = clock()
        """When the last call ended, in the clock's seconds."""
        self._since = 0
        """Calls since it was quiet; from `_CROWD` on a thread waits for the next quiet moment."""

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """See `grpc.ServerInterceptor`."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.unary_unary is None or kind(method) is Kind.IDENTITY:
            return handler
        behavior = handler.unary_unary

        def admitted(request: Any, context: grpc.ServicerContext) -> Any:
            with self.running(method):
                return behavior(request, context)

        return grpc.unary_unary_rpc_method_handler(admitted, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def running(self, method: str) -> Iterator[None]:
        """Count a call while inside. Raises `Unavailable` when there are enough of its kind."""
        calls, most = self._running[kind(method)], _AT_ONCE[kind(method)]
        name = method.rpartition("/")[2]
        with self._lock:
            if calls.total() >= most:
                shown = ", ".join(f"{number} {call}" for call, number in calls.most_common())
                raise Unavailable(
                    f"{most} calls run already ({shown}); this one was not begun. It is tried again; if they never end, a "
                    "disk may not answer: see this node's driver log"
                )
            calls[name] += 1
            self._since += 1
            crowded = self._since == _CROWD
        try:
            if crowded:
                self._begin_to_settle()
            yield
        finally:
            with self._lock:
                calls[name] -= 1
                if not calls[name]:
                    del calls[name]
                self._ended = self._clock()

    def _begin_to_settle(self) -> None:
        try:
            threading.Thread(target=self._settle, name="settle", daemon=True).start()
        except RuntimeError as error:
            _log.warning("no thread can be had to give memory back", extra={"error": str(error)})
            with self._lock:
                # The next crowd tries again.
                self._since = 0

    def _settle(self) -> None:
        """After a crowd: give memory back when it has been quiet for a moment, so that gRPC has sent the answers and freed
        what they took, and threads have ended.
        """
        while left := self._unsettled():
            self._sleep(left)
        process.give_back_memory()

    def _unsettled(self) -> float:
        """Seconds until it will have been quiet for long enough, when no call comes; 0 when it has."""
        with self._lock:
            ended = self._clock() if any(self._running.values()) else self._ended
            left = max(0.0, ended + _SETTLED_SECONDS - self._clock())
            if not left:
                self._since = 0
        return left
