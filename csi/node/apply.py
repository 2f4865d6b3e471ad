"""Carries out a plan: steps in order through a handler table that it is given, each logged, ending at the first failure.

It knows no step itself, so that a program's imports say what it can do.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

_log = logging.getLogger(__name__)


class Describable(Protocol):
    """A step of any plan."""

    def describe(self) -> str:
        """One line for the log."""
        ...


Handlers = Mapping[type[Any], Callable[[Any], None]]


def apply(plan: Iterable[Describable], handlers: Handlers) -> None:
    """Carry out every step. What a handler raises goes to the caller; the steps before it are done and stay done."""
    for step in plan:
        carry_out(step, handlers[type(step)])


def carry_out(step: Describable, handler: Callable[[Any], None], *, level: int = logging.INFO) -> None:
    """One step, with its duration in the log at that level."""
    started = time.monotonic()
    handler(step)
    _log.log(level, "step", extra={"step": step.describe(), "ms": round((time.monotonic() - started) * 1000)})
