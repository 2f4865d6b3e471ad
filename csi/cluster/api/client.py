"""Requests to the API server by the standard library's HTTP. Each has a connection of its own: there are few.

What this needs of Kubernetes' client protocol is small (JSON, a token that is renewed on disk, one answer that goes on for
minutes), so that no client library is in the image: docs/decisions/0038-what-the-cluster-helper-is-told.md.
"""

import contextlib
import http.client
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from csi.core.errors import InvalidInput, SealedLocalError, Unavailable

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECONDS: Final = 30.0
_WATCH_SECONDS: Final = 290
"""How long the server lets a watch go on; its socket waits a little longer, so that a dead connection is noticed."""
_MOST_BYTES: Final = 64 * 1024 * 1024
_CONFLICT: Final = 409
_GONE: Final = 410
_NOT_FOUND: Final = 404


class ApiRefused(SealedLocalError):
    """The API server answered, and not with what was asked for."""

    def __init__(self, what: str, status: int, said: str) -> None:
        super().__init__(f"{what}: the API server answers {status}: {said}")
        self.status = status

    @property
    def is_conflict(self) -> bool:
        """Somebody else has changed, or made, the object in between."""
        return self.status == _CONFLICT

    @property
    def is_gone(self) -> bool:
        """What the watch would go on from is too old: the list has to be read again."""
        return self.status == _GONE

    @property
    def is_not_found(self) -> bool:
        """There is no such object, or no such kind."""
        return self.status == _NOT_FOUND


class _Status(msgspec.Struct, frozen=True):
    message: str = ""
    code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the API server is. Without `account` it asks for no token, as `kubectl proxy` does."""

    url: str
    account: Path | None = _ACCOUNT


class Api:
    """Calls raise `Unavailable` when the server can't be reached and `ApiRefused` when it refuses."""

    def __init__(self, server: Server) -> None:
        parts = urlsplit(server.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise InvalidInput("--server", f"{server.url!r} is no https://HOST:PORT")
        self._host, self._port = parts.hostname, parts.port
        self._account = server.account
        self._tls = parts.scheme == "https"
        if not self._tls and server.account is not None:
            raise InvalidInput("--server", "a token is sent by https alone")

    def get(self, path: str, **query: str) -> bytes:
        """An object or a list."""
        return self._call("GET", path, query=query)

    def create(self, path: str, wanted: Any) -> bytes:
        """Make an object. A conflict says that there is one of that name."""
        return self._call("POST", path, wanted)

    def replace(self, path: str, wanted: Any) -> bytes:
        """Write an object whole. With a resourceVersion in it, a conflict says that somebody was faster."""
        return self._call("PUT", path, wanted)

    def patch(self, path: str, steps: Any) -> bytes:
        """Change an object by the steps of a JSON patch (RFC 6902). One whose `test` fails changes nothing."""
        return self._call("PATCH", path, steps, content="application/json-patch+json")

    def delete(self, path: str, uid: str) -> None:
        """Delete the object that has this uid, and no other of its name. One that is gone already is no error."""
        try:
            self._call("DELETE", path, {"preconditions": {"uid": uid}})
        except ApiRefused as error:
            if not (error.is_not_found or error.is_conflict):
                raise

    @contextlib.contextmanager
    def watch(self, path: str, version: str) -> Iterator[Iterator[bytes]]:
        """Changes since a version, one JSON text each, until the server ends it. The first may take minutes."""
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        connection = self._connect(_WATCH_SECONDS + _SECONDS)
        try:
            answer = self._answer(connection, "GET", f"{path}?{urlencode(query)}", None, "")
            if answer.status >= http.client.BAD_REQUEST:
                raise _refusal("GET", path, answer.status, answer.read(_MOST_BYTES))
            yield _lines(answer, path)
        finally:
            connection.close()

    def _call(
        self, verb: str, path: str, body: Any = None, *, content: str = "application/json", query: Any = None
    ) -> bytes:
        connection = self._connect(_SECONDS)
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            answer = self._answer(connection, verb, target, body, content)
            text = answer.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{verb} {path}: the API server does not answer ({error})") from error
        finally:
            connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            raise _refusal(verb, path, answer.status, text)
        return text

    def _answer(
        self, connection: http.client.HTTPConnection, verb: str, target: str, body: Any, content: str
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "sealed-local-cluster"}
        try:
            if self._account is not None:
                # Read each time: the kubelet renews it within the hour.
                headers["Authorization"] = f"Bearer {(self._account / 'token').read_text().strip()}"
            if body is not None:
                headers["Content-Type"] = content
            connection.request(verb, target, msgspec.json.encode(body) if body is not None else None, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{verb} {target}: the API server does not answer ({error})") from error

    def _connect(self, seconds: float) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        authority = str(self._account / "ca.crt") if self._account is not None else None
        context = ssl.create_default_context(cafile=authority)
        return http.client.HTTPSConnection(self._host, self._port, timeout=seconds, context=context)


def _lines(answer: http.client.HTTPResponse, path: str) -> Iterator[bytes]:
    try:
        while line := answer.readline(_MOST_BYTES):
            if not line.endswith(b"\n"):
                raise Unavailable(f"watch of {path}: it ended within a change")
            yield line
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"watch of {path}: the connection was lost ({error})") from error


def _refusal(verb: str, path: str, status: int, text: bytes) -> ApiRefused:
    try:
        said = msgspec.json.decode(text, type=_Status).message
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        said = text[:200].decode(errors="replace")
    return ApiRefused(f"{verb} {path}", status, said or "(nothing)")
