"""A small API server of Kubernetes on a local socket: lists in parts, watches, conflicts, patches, and trouble on demand.

It knows no kinds: an object lies where it was written. Versions count every change, as etcd does.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
_IDLE_SECONDS = 0.05
_PATIENCE_SECONDS = 30.0


@dataclass
class ApiServer:
    """`requests` are verb and path of everything that was asked, watches included as WATCH."""

    objects: dict[str, Object] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[tuple[str, str, Any]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    refused: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """By verb and path: a status, and how many more times it is given."""
    unknown: set[str] = field(default_factory=set)
    """Folders of kinds that this server doesn't know."""
    part: int = 2
    """So many objects are in a part of a list."""
    oldest: int = 0
    """Watches from an older version get 410."""
    generation: int = 0
    """A change of it ends every watch in the middle of a line."""
    version: int = 0
    log: list[tuple[int, str, str, Object]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    url: str = ""

    def put(self, path: str, wanted: Object) -> Object:
        """Write an object as somebody else would."""
        with self.changed:
            folder, _, name = path.rpartition("/")
            before = self.objects.get(path)
            self.version += 1
            metadata = {"name": name, "uid": f"uid-{self.version}", **(before or {}).get("metadata", {})}
            metadata |= wanted.get("metadata", {}) | {"resourceVersion": str(self.version)}
            made = {**wanted, "metadata": metadata}
            self.objects[path] = made
            self.log.append((self.version, folder, "MODIFIED" if before else "ADDED", made))
            self.changed.notify_all()
            return made

    def remove(self, path: str) -> None:
        """Take an object away."""
        with self.changed:
            self.version += 1
            gone = self.objects.pop(path)
            gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
            self.log.append((self.version, path.rpartition("/")[0], "DELETED", gone))
            self.changed.notify_all()

    def forget(self) -> None:
        """Drop what watches could go on from, and the watches."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.generation += 1
            self.changed.notify_all()

    def cut(self) -> None:
        """Lose every connection of a watch in the middle of a line."""
        with self.changed:
            self.generation += 1
            self.changed.notify_all()

    def refuse(self, verb: str, path: str, status: int, times: int = 1) -> None:
        """Answer so the next times."""
        self.refused[(verb, path)] = (status, times)

    def count(self, verb: str, path: str) -> int:
        """How often it was asked."""
        return self.requests.count((verb, path))

    def wait_for(self, verb: str, path: str, times: int = 1) -> None:
        """Until it was asked so often."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.count(verb, path) >= times, _PATIENCE_SECONDS)

    def under(self, folder: str) -> list[Object]:
        """The objects of a folder; of every namespace for a folder without one."""
        whole = folder.count("/namespaces/") == 0
        return [found for path, found in sorted(self.objects.items()) if _in(path, folder, everywhere=whole)]


def _in(path: str, folder: str, *, everywhere: bool) -> bool:
    own = path.rpartition("/")[0]
    if own == folder:
        return True
    root, _, kind = folder.rpartition("/")
    return everywhere and own.startswith(f"{root}/namespaces/") and own.endswith(f"/{kind}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent."""

    def _serve(self, verb: str) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        api, path = self.api, parts.path
        shown = "WATCH" if "watch" in query else verb
        with api.changed:
            api.requests.append((shown, path))
            api.bodies.append((verb, path, body))
            api.tokens.add(self.headers.get("Authorization", ""))
            generation = api.generation
            api.changed.notify_all()
            status, times = api.refused.get((shown, path), (0, 0))
            if times:
                api.refused[(shown, path)] = (status, times - 1)
        if times:
            self._answer(status, {"kind": "Status", "message": "refused on demand", "code": status})
        elif path in api.unknown:
            self._answer(404, {"kind": "Status", "message": "the server could not find the requested resource"})
        elif "watch" in query:
            self._watch(path, int(query["resourceVersion"]), generation)
        else:
            self._answer(*getattr(self, f"_{verb.lower()}")(path, body, query))

    do_GET = lambda self: self._serve("GET")  # noqa: E731, N815
    do_POST = lambda self: self._serve("POST")  # noqa: E731, N815
    do_PUT = lambda self: self._serve("PUT")  # noqa: E731, N815
    do_PATCH = lambda self: self._serve("PATCH")  # noqa: E731, N815
    do_DELETE = lambda self: self._serve("DELETE")  # noqa: E731, N815

    def _get(self, path: str, _: Any, query: dict[str, str]) -> tuple[int, Object]:
        if path in self.api.objects:
            return 200, self.api.objects[path]
        if "limit" not in query:
            return 404, {"kind": "Status", "message": f"{path} not found"}
        found = self.api.under(path)
        first = int(query.get("continue", 0))
        more = first + self.api.part < len(found)
        metadata = {"resourceVersion": str(self.api.version)}
        if more:
            metadata["continue"] = str(first + self.api.part)
        return 200, {"metadata": metadata, "items": found[first : first + self.api.part]}

    def _post(self, path: str, body: Any, _: Any) -> tuple[int, Object]:
        place = f"{path}/{body['metadata']['name']}"
        if place in self.api.objects:
            return 409, {"kind": "Status", "message": "already exists"}
        return 201, self.api.put(place, body)

    def _put(self, path: str, body: Any, _: Any) -> tuple[int, Object]:
        before = self.api.objects.get(path)
        if before is None:
            return 404, {"kind": "Status", "message": "not found"}
        if body["metadata"].get("resourceVersion") not in (None, before["metadata"]["resourceVersion"]):
            return 409, {"kind": "Status", "message": "the object has been modified"}
        return 200, self.api.put(path, body)

    def _patch(self, path: str, steps: Any, _: Any) -> tuple[int, Object]:
        place = path.removesuffix("/status")
        before = self.api.objects.get(place)
        if before is None:
            return 404, {"kind": "Status", "message": "not found"}
        made = json.loads(json.dumps(before))
        for step in steps:
            *outer, last = step["path"].strip("/").split("/")
            holder = made
            for key in outer:
                holder = holder[key]
            if step["op"] == "test" and holder.get(last) != step["value"]:
                return 422, {"kind": "Status", "message": "the test failed"}
            if step["op"] in ("add", "replace"):
                holder[last] = step["value"]
        return 200, self.api.put(place, made)

    def _delete(self, path: str, body: Any, _: Any) -> tuple[int, Object]:
        found = self.api.objects.get(path)
        if found is None:
            return 404, {"kind": "Status", "message": "not found"}
        wanted = (body or {}).get("preconditions", {}).get("uid")
        if wanted not in (None, found["metadata"]["uid"]):
            return 409, {"kind": "Status", "message": "the UID in the precondition does not match"}
        self.api.remove(path)
        return 200, {"kind": "Status"}

    def _answer(self, status: int, body: Object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _watch(self, path: str, since: int, generation: int) -> None:
        api = self.api
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if since < api.oldest:
            status = {"kind": "Status", "code": 410, "message": "too old resource version"}
            self.wfile.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return
        try:
            while True:
                with api.changed:
                    if generation != api.generation:
                        self.wfile.write(b'{"type":"ADDED","obj')
                        return
                    new = [entry for entry in api.log if entry[0] > since and self._is_of(entry, path)]
                    if not new:
                        api.changed.wait(_IDLE_SECONDS)
                for version, _, kind, found in new:
                    self.wfile.write(json.dumps({"type": kind, "object": found}).encode() + b"\n")
                    since = version
                self.wfile.flush()
        except OSError:
            return

    @staticmethod
    def _is_of(entry: tuple[int, str, str, Object], path: str) -> bool:
        return _in(f"{entry[1]}/x", path, everywhere="/namespaces/" not in path)


@contextmanager
def serving() -> Iterator[ApiServer]:
    """One on a free port."""
    api = ApiServer()
    handler = type("Handler", (_Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.cut()
        server.shutdown()
        server.server_close()
        thread.join()
