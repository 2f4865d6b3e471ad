"""How long the request at hand may still wait. Whoever asked has gone on by then, so waiting longer only holds a thread."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ENDS: ContextVar[float | None] = ContextVar("ends", default=None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Everything inside, in threads that inherit its context too, has so much time together."""
    token = _ENDS.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ENDS.reset(token)


def remaining(otherwise: float) -> float:
    """Seconds left, at least 0; `otherwise` where nobody set an end."""
    ends = _ENDS.get()
    return otherwise if ends is None else max(0.0, ends - time.monotonic())
