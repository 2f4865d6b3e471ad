"""Structured logs: one JSON line an event on standard error, with the request's and the volume's id.

Context travels in a context variable, so that code far below an RPC need not know whose call it serves.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

_context: ContextVar[dict[str, str] | None] = ContextVar("log_context", default=None)
_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


@contextmanager
def context(**fields: str) -> Iterator[None]:
    """Add fields (`request_id`, `volume_id`, `rpc`) to every event that is logged inside the block."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def fields() -> dict[str, str]:
    """The fields of this moment, for work that goes on in another thread."""
    return dict(_context.get() or {})


class JsonFormatter(logging.Formatter):
    """Renders a record as one JSON object: time, level, event, context, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`. Values that JSON doesn't know are shown by `str`, which redacts secrets."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        event: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **(_context.get() or {}),
        }
        event |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD_FIELDS}
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str, ensure_ascii=False)


def set_up(level: str, stream: TextIO | None = None) -> None:
    """Send all logging of this process as JSON lines to `stream` (standard error unless told)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
