"""Who may change which volume group now: one command a group at a time, others wait in the order in which they came.

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

_POLL_SECONDS: Final = 0.25
_FILE_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What a group's queue looks like at one moment, for the metrics."""

    holder: str
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    number: int
    group: str
    holder: str
    thread: int


@dataclass(slots=True)
class Turns:
    """The queues of this node's groups. `lock_file` is where the processes' locks lie."""

    lock_file: Path
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _held: list[_Turn] = field(default_factory=list)
    _waiting: list[_Turn] = field(default_factory=list)
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
        callers have given up must not fill the server's threads. `holder` is named to whoever waits in vain.
        """
        if self._is_mine(group):
            yield
            return
        with self._turn(group, holder, wait_seconds, still_wanted):
            descriptor = self._lock(group, wait_seconds, still_wanted)
            try:
                yield
            finally:
                os.close(descriptor)

    def queues(self) -> dict[str, Queue]:
        """Every group that somebody holds or waits for."""
        with self._changed:
            names = {turn.group for turn in (*self._held, *self._waiting)}
            holders = {turn.group: turn.holder for turn in self._held}
            return {
                name: Queue(
                    holder=holders.get(name, ""),
                    waiting=sum(turn.group == name for turn in self._waiting),
                )
                for name in names
            }

    def _is_mine(self, group: str) -> bool:
        with self._changed:
            return any(turn.thread == threading.get_ident() and turn.group == group for turn in self._held)

    @contextmanager
    def _turn(self, group: str, holder: str, wait_seconds: float, still_wanted: Callable[[], bool]) -> Iterator[None]:
        give_up = time.monotonic() + wait_seconds
        with self._changed:
            self._count += 1
            turn = _Turn(number=self._count, group=group, holder=holder, thread=threading.get_ident())
            self._waiting.append(turn)
            try:
                while (before := self._before(turn)) is not None:
                    if self._changed.wait(max(0.0, min(_POLL_SECONDS, give_up - time.monotonic()))):
                        continue
                    _require_wanted(still_wanted, before.holder)
                    if time.monotonic() >= give_up:
                        raise Unavailable(
                            f"LVM is busy with {before.holder!r} for more than {wait_seconds:g} s; try again later"
                        )
                self._held.append(turn)
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(turn)
                self._changed.notify_all()

    def _before(self, turn: _Turn) -> _Turn | None:
        """Whose end this turn has to wait for."""
        earlier = (other for other in self._waiting if other.number < turn.number)
        return next((other for other in (*self._held, *earlier) if other.group == turn.group), None)

    def _lock(self, group: str, wait_seconds: float, still_wanted: Callable[[], bool]) -> int:
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
