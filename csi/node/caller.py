"""Whether somebody still waits for the answer of the work at hand.

Travels in a context variable as the log's fields do, so that what waits far below an RPC need not know whose call it is.
Nothing that has begun is ended by it: only waiting for a turn is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


def _always() -> bool:
    return True


_check: ContextVar[Callable[[], bool]] = ContextVar("caller", default=_always)


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
