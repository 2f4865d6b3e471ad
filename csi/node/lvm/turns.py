"""Who may change which volume group now: one command a group at a time. Of those who wait, a pod's call goes before a
claim's and that before a deletion's, and among equals who came first.

Groups don't wait for one another, so that a disk that doesn't answer stops its own group only. Two driver processes, as an
update leaves them for a while, take turns by locks on a file, one for each group's name.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from csi.core import files
from csi.core.errors import Unavailable
from csi.node import caller

_POLL_SECONDS: Final = 0.5
"""How often who waits looks whether that is still wanted."""
_FILE_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What a group's queue looks like at one moment, for the metrics."""

    holder: str
    waiting: int


@dataclass(slots=True, kw_only=True, eq=False)
class _Turn:
    group: str
    holder: str
    rank: caller.Rank
    number: int
    thread: int = field(default_factory=threading.get_ident)
    granted: threading.Event = field(default_factory=threading.Event)
    """Each has its own: that one turn ends need not wake all who wait."""


@dataclass(slots=True)
class Turns:
    """The queues of this node's groups. `lock_file` is where the processes' locks lie."""

    lock_file: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _held: dict[str, _Turn] = field(default_factory=dict)
    _waiting: dict[str, list[_Turn]] = field(default_factory=dict)
    _count: int = 0

    @contextmanager
    def group(
        self,
        group: str,
        holder: str,
        wait_seconds: float = 300.0,
        still_wanted: Callable[[], bool] = caller.still_waits,
    ) -> Iterator[None]:
        """Hold a group for a change; inside the block this thread may take its turn again.

        Raises `Unavailable` when the turn doesn't come in time, or `still_wanted` says no before it comes: calls whose
        callers have given up must not fill the server's threads. `holder` is named to whoever waits in vain. How urgent it
        is, `caller.rank` says.
        """
        if self._is_mine(group):
            yield
            return
        with self._turn(group, holder, wait_seconds, still_wanted):
            descriptor = self._take_file(group, wait_seconds, still_wanted)
            try:
                yield
            finally:
                os.close(descriptor)

    def queues(self) -> dict[str, Queue]:
        """Every group that somebody holds or waits for."""
        with self._lock:
            return {
                name: Queue(
                    holder=self._held[name].holder if name in self._held else "",
                    waiting=len(self._waiting.get(name, ())),
                )
                for name in {*self._held, *self._waiting}
            }

    def _is_mine(self, group: str) -> bool:
        with self._lock:
            held = self._held.get(group)
            return held is not None and held.thread == threading.get_ident()

    @contextmanager
    def _turn(self, group: str, holder: str, wait_seconds: float, still_wanted: Callable[[], bool]) -> Iterator[None]:
        turn = self._asked_for(group, holder)
        try:
            self._await(turn, wait_seconds, still_wanted)
            yield
        finally:
            self._end(turn)

    def _asked_for(self, group: str, holder: str) -> _Turn:
        with self._lock:
            self._count += 1
            turn = _Turn(group=group, holder=holder, rank=caller.rank(), number=self._count)
            self._waiting.setdefault(group, []).append(turn)
            self._grant(group)
            return turn

    def _await(self, turn: _Turn, wait_seconds: float, still_wanted: Callable[[], bool]) -> None:
        give_up = time.monotonic() + wait_seconds
        while not turn.granted.wait(max(0.0, min(_POLL_SECONDS, give_up - time.monotonic()))):
            before = self._before(turn)
            _require_wanted(still_wanted, before)
            if time.monotonic() >= give_up:
                raise Unavailable(f"LVM is busy with {before!r} for more than {wait_seconds:g} s; try again later")

    def _before(self, turn: _Turn) -> str:
        """Whose end this turn waits for."""
        with self._lock:
            return self._held.get(turn.group, turn).holder

    def _end(self, turn: _Turn) -> None:
        """Give the turn back, or the place in the queue."""
        with self._lock:
            if self._held.get(turn.group) is turn:
                del self._held[turn.group]
            else:
                self._waiting[turn.group].remove(turn)
            self._grant(turn.group)

    def _grant(self, group: str) -> None:
        """With the lock held: the next one's turn, if nobody has it."""
        waiting = self._waiting.get(group, [])
        if waiting and group not in self._held:
            following = min(waiting, key=lambda turn: (turn.rank, turn.number))
            waiting.remove(following)
            self._held[group] = following
            following.granted.set()
        if not waiting:
            self._waiting.pop(group, None)

    def _take_file(self, group: str, wait_seconds: float, still_wanted: Callable[[], bool]) -> int:
        give_up = time.monotonic() + wait_seconds
        while (taken := files.take_named_lock(self.lock_file, group)) is None:
            if time.monotonic() > give_up:
                raise Unavailable(
                    f"another driver process holds volume group {group} by {self.lock_file}; end it, or wait for its end"
                )
            _require_wanted(still_wanted, "another driver process")
            time.sleep(_FILE_POLL_SECONDS)
        return taken


def _require_wanted(still_wanted: Callable[[], bool], holder: str) -> None:
    if not still_wanted():
        raise Unavailable(f"the caller went away while LVM was busy with {holder!r}; nothing was done")
