"""Requests whose line holds a whole URL: servers have to take them like those with a path alone (RFC 9112, 3.2.2)."""

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

_AUTHORITY = re.compile(rb"https?://[^/]*", re.IGNORECASE)


class OriginForm:
    """An ASGI application before which scheme and host are taken off the path. Which host is named does not matter."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        found = _AUTHORITY.match(scope.get("raw_path") or b"") if scope["type"] == "http" else None
        if found is not None:
            raw = scope["raw_path"][found.end() :] or b"/"
            scope = {**scope, "raw_path": raw, "path": unquote(raw.decode("ascii"))}
        await self._application(scope, receive, send)
