"""For whom the work at hand is done: whether somebody still waits for its answer, and how urgent it is to him.

Travels in context variables as the log's fields do, so that what waits far below an RPC need not know whose call it is.
Nothing that has begun is ended by it: only waiting for a turn is, and its order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum


class Rank(IntEnum):
    """Who goes first where several wait; among equals the order in which they came counts."""

    POD = 0
    """A pod that begins or ends."""
    CLAIM = 1
    """A volume that a pod will have later."""
    LAST = 2
    """What nobody will use any more: two hundred deletions must not hold up one pod."""


def _always() -> bool:
    return True


_check: ContextVar[Callable[[], bool]] = ContextVar("caller", default=_always)
_rank: ContextVar[Rank] = ContextVar("rank", default=Rank.CLAIM)


@contextmanager
def waiting(check: Callable[[], bool]) -> Iterator[None]:
    """Inside the block, `check` tells whether the caller still waits."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def still_waits() -> bool:
    """Whether the caller of this thread's work still waits; true where there is none."""
    return _check.get()()


@contextmanager
def ranked(rank: Rank) -> Iterator[None]:
    """Inside the block, the work is as urgent as that."""
    token = _rank.set(rank)
    try:
        yield
    finally:
        _rank.reset(token)


def rank() -> Rank:
    """How urgent this thread's work is."""
    return _rank.get()
