"""Keeps connections that ask for nothing from shutting guests out. Knows nothing of what is asked or answered.

uvicorn bounds the number of connections and closes idle ones, but only after their first answer: whoever connects and sends
nothing, or half a request, or no end of a body, keeps a place for ever. No evidence is needed for that, so it ends here.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PATIENCE_SECONDS = 10.0
"""From the connection, or the last answer, to the end of the next request. Guests need milliseconds."""


_HEAD_LIMIT_BYTES = 256 * 1024
"""Bearer tokens of upstream are large: they carry the whole evidence."""


class ImpatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 where each request has to be complete in time, and who waits longest gives way when places run out.

    The parser, llhttp, takes a head of any length, so that is bounded here, too.
    """

    patience_seconds = PATIENCE_SECONDS
    _deadline: asyncio.TimerHandle | None = None
    _in_head = True
    """Whether what comes next belongs to a request's line and fields, and not to its body."""
    _head_bytes = 0
    """Of a head that goes on, in the pieces that have come of it, but for what came with the end of a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called after the TLS handshake, which `BoundedHandshakes` bounds."""
        super().connection_made(transport)
        self._wait()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to end."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called with each piece that comes, of at most 256 KiB."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > _HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request has more than {_HEAD_LIMIT_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """The body follows."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next request's head follows."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request on this connection gets its own time."""
        self._wait()
        super().on_response_complete()

    def _wait(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(self.patience_seconds, self._end_unless_at_work)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _is_at_work(self) -> bool:
        """Whether a whole request is being answered."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _end_unless_at_work(self) -> None:
        if not self._is_at_work():
            self._end()

    def _end(self) -> None:
        # An orderly end would wait half a minute for the other side's, and count as a connection all that time.
        self.transport.abort()
        self.connections.discard(self)

    def _make_room(self) -> None:
        """uvicorn would answer 503 to everyone from here on; a guest sends its request at once, so it is not the oldest."""
        if self.limit_concurrency is None or len(self.connections) < self.limit_concurrency:
            return
        waiting = (other for other in self.connections if isinstance(other, ImpatientProtocol) and other is not self)
        idle = [other for other in waiting if other._deadline is not None and not other._is_at_work()]  # noqa: SLF001
        if idle:
            min(idle, key=_when)._end()  # noqa: SLF001


class BoundedHandshakes(asyncio.SelectorEventLoop):
    """asyncio's event loop, with a bound of its own for TLS handshakes: they come before any protocol is told of them.

    uvicorn has no setting for it, and asyncio waits a minute.
    """

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """See `asyncio.loop.create_server`."""
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", PATIENCE_SECONDS)
        return await super().create_server(*args, **options)


def _when(connection: ImpatientProtocol) -> float:
    return 0.0 if connection._deadline is None else connection._deadline.when()  # noqa: SLF001
