"""The two questions of a supervisor. Alive: does the program answer at all? Ready: could it serve a guest now?

Liveness is answered by the event loop itself, so that a locked database or a crowd of requests that wait for it do not
get the program killed. Readiness is one look at the database, in a thread of its own, whoever asks and however many.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from csi.core.errors import SealedLocalError

_log = logging.getLogger(__name__)


class Health:
    """The handlers. `look` raises when no guest could be served; it is never at work twice at one time."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="readiness")
        self._at_work: asyncio.Future[None] | None = None

    async def alive(self, _: Request) -> Response:
        """200, always: nothing is waited for."""
        return PlainTextResponse("ok\n")

    async def ready(self, _: Request) -> Response:
        """200, or 503 with the reason in the log."""
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.get_running_loop().run_in_executor(self._thread, self._look)
        try:
            await asyncio.shield(self._at_work)
        except SealedLocalError as error:
            _log.warning("not ready", extra={"why": str(error)})
            return PlainTextResponse("not ready\n", status_code=503)
        return PlainTextResponse("ready\n")
