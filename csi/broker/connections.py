"""Keeps connections that ask for nothing from shutting guests out. Knows nothing of what is asked or answered.

uvicorn bounds the number of connections and closes idle ones, but only after their first answer: whoever connects and sends
nothing, or half a request, or no end of a body, or never reads what is answered, keeps a place for ever. No evidence is
needed for that, so it ends here.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PATIENCE_SECONDS = 10.0
"""From the connection, or the last answer, to the end of the next request; and from there on for taking an answer that no
buffer has room for. Guests need milliseconds.
"""
_FRAME_LIMIT_BYTES = 256 * 1024
"""Of a request, all but its body: line, fields, sizes of chunks, trailers. Bearer tokens of upstream are large: they carry
the whole evidence.
"""
_MAX_FIELDS = 128
"""Of a request, with its trailers. In Python a field of four bytes takes thirty times as much."""
_MAX_WAITING_REQUESTS = 4
"""Sent on a connection before the answer to an earlier one. Guests, curl and Prometheus send none."""


class _TooMuch(Exception):
    """Ends the parsing, also of what has come already; uvicorn answers 400."""


class ImpatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 where each request has to be complete in time, each answer to be taken in time, and who waits longest gives
    way when places run out.

    The parser, llhttp, takes any length of whatever is not the body, and uvicorn any number of requests at a time, so those
    are bounded here, too.
    """

    patience_seconds = PATIENCE_SECONDS
    _deadline: asyncio.TimerHandle | None = None
    _frame_bytes = 0
    """Of the request that goes on. Right but for one piece: what came together with the end of another is not counted."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called after the TLS handshake, which `BoundedHandshakes` bounds."""
        super().connection_made(transport)
        # Only what the socket has no room for is in this buffer: anything there is an answer that is not being taken.
        transport.set_write_buffer_limits(high=1, low=0)
        self._wait()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to end."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called with each piece that comes, of some 256 KiB."""
        self._frame_bytes += len(data)
        super().data_received(data)
        if self._frame_bytes > _FRAME_LIMIT_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request has more than {_FRAME_LIMIT_BYTES} bytes beside its body.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer."""
        if len(self.headers) >= _MAX_FIELDS:
            raise _TooMuch
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request can be answered, or waits for its turn."""
        if len(self.pipeline) >= _MAX_WAITING_REQUESTS:
            raise _TooMuch
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """What the application takes, which has a bound of its own for it."""
        self._frame_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next request's head follows."""
        self._frame_bytes = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The other side doesn't take its answer. It has as long for that as for a request."""
        super().pause_writing()
        self._wait()

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
        """Whether a whole request is being answered, and the other side is not what that waits for."""
        answering = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        return answering and not self.flow.write_paused

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
