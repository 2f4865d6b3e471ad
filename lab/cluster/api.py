"""A light client of the cluster's API, carried out in the node by its agent, as the cluster's administrator.

Waiting is done here and not outside: a call over the agent's line costs more than a look at the API, and a start of kubectl
costs seconds of the node's only processor.
"""

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.cluster import parts
from lab.cluster.users import AUTHORITY

_MERGE = "application/merge-patch+json"
_SECONDS = 60


def wait_ready(keys: str, seconds: float) -> None:
    """Wait until the API server says that it is ready."""
    _wait("the API server", seconds, lambda: _send(keys, "GET", "/readyz", None) == b"ok")


def request(keys: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """One call as the cluster's administrator: `{"status": 200, "body": {...}}`. A refusal is an answer, too."""
    try:
        return {"status": 200, "body": json.loads(_send(keys, method, path, body))}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": json.loads(error.read())}


def wait_gone(keys: str, path: str, uid: str, seconds: float) -> None:
    """Wait until an object is no more; another one of its name may be there already."""

    def gone() -> bool:
        answer = request(keys, "GET", path)
        return bool(answer["status"] == 404 or answer["body"]["metadata"]["uid"] != uid)

    _wait(f"{path} to be gone", seconds, gone)


def wait_field(keys: str, path: str, field: list[Any], wanted: list[Any], seconds: float) -> dict[str, Any]:
    """Wait until a field of an object has one of the values; returns the object. The server may be away meanwhile."""
    last: dict[str, Any] = {}

    def reached() -> bool:
        answer = request(keys, "GET", path)
        last.clear()
        last.update(answer["body"])
        return answer["status"] == 200 and field_of(last, field) in wanted

    try:
        _wait(f"{path} {field} {wanted}", seconds, reached)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; it is {json.dumps(last.get('status', last))[:3000]}") from None
    return last


def wait_event(keys: str, namespace: str, name: str, text: str, seconds: float) -> dict[str, Any]:
    """Wait until an event about an object has a text in its message; returns the event."""
    path = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name={name}"
    found: list[dict[str, Any]] = []
    seen: list[str] = []

    def reached() -> bool:
        items = request(keys, "GET", path)["body"]["items"]
        seen[:] = [f"{item['reason']}: {item['message']}" for item in items]
        found[:] = [item for item in items if text in item["message"]]
        return bool(found)

    try:
        _wait(f"an event on {name} with {text!r}", seconds, reached)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; events are {seen}") from None
    return found[-1]


def field_of(value: Any, path: list[Any]) -> Any:
    """What lies at a path of keys and places in lists; a dict picks from a list the entry that has the same fields."""
    for step in path:
        try:
            value = _entry(value, step) if isinstance(step, dict) else value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _entry(entries: list[dict[str, Any]], wanted: dict[str, Any]) -> Any:
    return next((entry for entry in entries if wanted.items() <= entry.items()), None)


def _wait(what: str, seconds: float, probe: Callable[[], bool]) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            if probe():
                return
        except (OSError, KeyError):
            pass
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.5)


def _send(keys: str, method: str, path: str, body: Any) -> bytes:
    config = json.loads(Path(keys, "admin.kubeconfig").read_text())
    content = _MERGE if method == "PATCH" else "application/json"
    message = urllib.request.Request(
        f"{parts.SERVER}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}", "Content-Type": content},
    )
    context = ssl.create_default_context(cafile=f"{keys}/{AUTHORITY}")
    with urllib.request.urlopen(message, timeout=_SECONDS, context=context) as answer:
        return bytes(answer.read())
