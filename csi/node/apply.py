"""Carries out a plan: steps in order through a handler table that it is given, each logged, ending at the first failure.

It knows no step itself, so that a program's imports say what it can do.
"""

import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from csi.core.errors import DiskFailed

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
    """One step, with its duration in the log at that level. Raises `DiskFailed` where a disk answers with an error."""
    started = time.monotonic()
    try:
        handler(step)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DiskFailed(f"the step to {step.describe()}", "failed", error) from error
    _log.log(level, "step", extra={"step": step.describe(), "ms": round((time.monotonic() - started) * 1000)})
