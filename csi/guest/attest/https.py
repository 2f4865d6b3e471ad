"""HTTPS to one server whose authority is pinned: bounded time and size, no redirects, no proxy, no system trust store.

Built on `http.client`, because a guest without KVM imports little else in bearable time. Repeats a request when the
connection fails, so it must carry only requests that may be repeated.
"""

import http.client
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from urllib.parse import urlsplit

from csi.core.errors import InvalidInput, Unavailable

_log = logging.getLogger(__name__)

TRY_DELAYS_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Between the tries of one exchange."""
_REUSE_SECONDS = 3.0
"""Servers close idle connections after about five seconds; one that is nearly so old is not worth the try."""
_BUSY_STATUSES = frozenset({429, 500, 502, 503, 504})
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A whole answer."""

    status: int
    headers: Message
    body: bytes


class HttpsTransport:
    """A client of one server. Not for use by several threads at once."""

    def __init__(
        self,
        *,
        url: str,
        ca_pem: str,
        timeout_seconds: float,
        max_body_bytes: int,
        try_delays_seconds: tuple[float, ...] = TRY_DELAYS_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._port = _split(url)
        self._name = f"{self._host}:{self._port}"
        self._tls = pinned(ca_pem)
        self._timeout = timeout_seconds
        self._max_body = max_body_bytes
        self._try_delays = try_delays_seconds
        self._sleep = sleep
        self._clock = clock
        self._connection: http.client.HTTPSConnection | None = None
        self._used_at = 0.0

    def exchange(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
        """Send one request and read its answer, whatever its status; raises `Unavailable` when no try succeeds."""
        problem = "not tried"
        for delay in (*self._try_delays, None):
            try:
                response = self._once(method, path, body, headers)
                if response.status not in _BUSY_STATUSES:
                    return response
                problem = f"HTTP status {response.status}"
            except ssl.SSLCertVerificationError as error:
                self.close()
                raise Unavailable(
                    f"broker {self._name}: its certificate does not verify against the pinned authority: "
                    f"{error.verify_message}"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            self.close()
            if delay is not None:
                _log.warning("the broker does not answer, trying again", extra={"broker": self._name, "why": problem})
                self._sleep(delay)
        tries = len(self._try_delays) + 1
        raise Unavailable(f"broker {self._name}: {tries} {'tries' if tries > 1 else 'try'} failed, the last: {problem}")

    def close(self) -> None:
        """Drop the connection; the next exchange makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
        deadline = self._clock() + self._timeout
        connection = self._connected()
        connection.request(method, path, body=body, headers=dict(headers))
        with connection.getresponse() as answer:
            content = self._read(answer, deadline)
            self._used_at = self._clock()
            return Response(status=answer.status, headers=answer.headers, body=content)

    def _connected(self) -> http.client.HTTPSConnection:
        if self._connection is not None and self._clock() - self._used_at > _REUSE_SECONDS:
            self.close()
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=self._tls
            )
        return self._connection

    def _read(self, answer: http.client.HTTPResponse, deadline: float) -> bytes:
        content = bytearray()
        while chunk := answer.read1(_CHUNK_BYTES):
            content += chunk
            if len(content) > self._max_body:
                self.close()
                raise Unavailable(f"broker {self._name}: its answer is longer than {self._max_body} bytes")
            if self._clock() > deadline:
                raise TimeoutError(f"the answer was not complete after {self._timeout:g} s")
        if answer.length:
            # read1() takes a connection that broke for the end of the answer.
            raise http.client.IncompleteRead(bytes(content), answer.length)
        return bytes(content)


def _split(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput("broker.url", f"{url!r}: {error}") from error
    if parts.scheme != "https" or host is None:
        raise InvalidInput("broker.url", f"{url!r} is not https://HOST[:PORT]; without TLS nothing is released")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidInput("broker.url", f"{url!r}: only https://HOST[:PORT], nothing before or after")
    return host, port or 443


@lru_cache(maxsize=4)
def pinned(ca_pem: str) -> ssl.SSLContext:
    """TLS that trusts these authorities alone; remembered, so that a process that waits for work can make it ahead.

    Raises `InvalidInput`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not ca_pem.strip():
        raise InvalidInput("broker.ca", "missing; it pins the broker's certificate authority")
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidInput("broker.ca", f"not certificates in PEM: {error}") from error
    return context
