"""One kind of object, kept current: read as a list, then followed by a watch, and read again when the watch can't go on."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from csi.cluster.api.client import Api, ApiRefused
from csi.core.errors import SealedLocalError
from csi.core.kubernetes import Metadata

_log = logging.getLogger(__name__)

_PAGE: Final = "500"
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 30.0


class HasMetadata(Protocol):
    """Every object of Kubernetes."""

    @property
    def metadata(self) -> Metadata:
        """Name and life."""


T = TypeVar("T", bound=HasMetadata)


class _ListMetadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMetadata = _ListMetadata()
    items: tuple[msgspec.Raw, ...] | None = None


class _Change(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Failure(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


class _Mark(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Marked(msgspec.Struct, frozen=True):
    metadata: _Mark


Pause = Callable[[float], bool]
"""Waits so many seconds; true when the program ends."""


class Watched(Generic[T]):
    """`wake` is called after each change. An object that can't be read is left out, with a line in the log."""

    def __init__(
        self, api: Api, path: str, kind: type[T], wake: Callable[[], None] = lambda: None, *, optional: bool = False
    ) -> None:
        self._api = api
        self.path = path
        self._kind = kind
        self._wake = wake
        self._optional = optional
        self._lock = threading.Lock()
        self._objects: dict[tuple[str, str], T] = {}
        self._version = ""
        self.read = threading.Event()
        """Set once the list was read, or found to be of a kind that the cluster doesn't know."""
        self.unknown = False
        """Whether the cluster doesn't know the kind."""

    @property
    def items(self) -> tuple[T, ...]:
        """All of them as of now."""
        with self._lock:
            return tuple(self._objects.values())

    def follow(self, pause: Pause) -> None:
        """Keep it current until `pause` says that the program ends."""
        wait = _FIRST_PAUSE_SECONDS
        while True:
            try:
                if not self._version:
                    self._list()
                self._watch()
                wait = _FIRST_PAUSE_SECONDS
            except ApiRefused as error:
                # What was read stays: it is the newest that is known.
                self._version = ""
                if not error.is_gone:
                    self._note(error)
                    wait = min(2 * wait, _LONGEST_PAUSE_SECONDS)
            except SealedLocalError as error:
                # The list's version goes on being right: the next watch tells what happened in between.
                _log.info("watch ends and begins anew", extra={"path": self.path, "error": str(error)})
                wait = min(2 * wait, _LONGEST_PAUSE_SECONDS)
            except msgspec.MsgspecError as error:
                self._version = ""
                _log.warning("the API server's answer can't be read", extra={"path": self.path, "error": str(error)})
                wait = min(2 * wait, _LONGEST_PAUSE_SECONDS)
            if pause(wait):
                return

    def _note(self, error: ApiRefused) -> None:
        if self._optional and error.is_not_found:
            self.unknown = True
            self.read.set()
            return
        _log.warning("can't read", extra={"path": self.path, "error": str(error)})

    def _list(self) -> None:
        found: dict[tuple[str, str], T] = {}
        query = {"limit": _PAGE}
        while True:
            page = msgspec.json.decode(self._api.get(self.path, **query), type=_List)
            for raw in page.items or ():
                made = self._decoded(raw)
                if made is not None:
                    found[_key(made.metadata)] = made
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        with self._lock:
            self._objects = found
        self._version = page.metadata.resource_version
        self.unknown = False
        # In this order: whoever waits for the first list has no call to wake up to any more.
        self._wake()
        self.read.set()

    def _watch(self) -> None:
        with self._api.watch(self.path, self._version) as lines:
            for line in lines:
                change = msgspec.json.decode(line, type=_Change)
                if change.type == "ERROR":
                    failure = msgspec.json.decode(change.object, type=_Failure)
                    raise ApiRefused(f"watch of {self.path}", failure.code, failure.message)
                self._take(change)

    def _take(self, change: _Change) -> None:
        bare = msgspec.json.decode(change.object, type=_Marked).metadata
        self._version = bare.resource_version or self._version
        if change.type == "BOOKMARK":
            return
        key = (bare.namespace, bare.name)
        made = self._decoded(change.object) if change.type != "DELETED" else None
        with self._lock:
            if made is None:
                self._objects.pop(key, None)
            else:
                self._objects[key] = made
        self._wake()

    def _decoded(self, raw: msgspec.Raw) -> T | None:
        try:
            return msgspec.json.decode(raw, type=self._kind)
        except msgspec.ValidationError as error:
            _log.warning("an object can't be read", extra={"path": self.path, "error": str(error)})
            return None


def _key(metadata: Metadata) -> tuple[str, str]:
    return metadata.namespace, metadata.name


def follow_all(watched: tuple[Watched[Any], ...], pause: Pause) -> None:
    """A thread for each."""
    for one in watched:
        threading.Thread(target=one.follow, args=(pause,), name=f"watch {one.path}", daemon=True).start()
