"""One accepted connection: which of its frames go to a worker, and the connection to the confidential-data-hub behind that
belongs to it.

Each caller has a connection of its own behind, so streams keep their numbers, and frames pass in both directions as the
bytes that they are. Only requests are looked into, for the name of their service.
"""

import socket
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from csi.guest.serve import answers, frames
from csi.guest.serve.answers import Code
from csi.guest.serve.frames import Frame, TooLong
from csi.guest.serve.link import Link
from csi.guest.serve.proto.ttrpc_pb2 import Request

_OURS: Final = ("api.SecureMountService", "SecureMount")

PATIENCE_SECONDS: Final = 10.0
"""How long a request waits for a confidential-data-hub that is starting, or starting again."""

Mount = Callable[["Client", Frame, Request], None]
"""Takes a SecureMount; the answer comes later by `Client.answer` or `Client.relay`."""


class Client:
    """See above. `behind` is the path of the other socket; None when nothing stands behind."""

    def __init__(self, link: Link, *, behind: str | None, mount: Mount) -> None:
        self.link = link
        self.behind: Link | None = None
        self.is_open = True
        self._path, self._mount = behind, mount
        self._relayed: set[int] = set()
        self._waiting: list[Frame] = []
        self._give_up = 0.0

    @property
    def waits(self) -> bool:
        """Whether a request waits for the confidential-data-hub to come up."""
        return bool(self._waiting)

    def receive(self, now: float) -> None:
        """Take what the caller sent."""
        received = self.link.receive()
        if received is None:
            self.close()
            return
        for frame in received:
            try:
                self._take(frame, now)
            except Exception as error:
                self.answer(frame.stream, answers.failure(Code.INTERNAL, f"the front failed: {error!r}"))

    def receive_from_behind(self) -> None:
        """Pass on what the confidential-data-hub sent; tell whoever waits for it that it ended."""
        received = self.behind.receive() if self.behind is not None else []
        if received is None:
            self._lost_behind()
            return
        for frame in received:
            if isinstance(frame, TooLong):
                self._answer_relayed(frame.stream, Code.RESOURCE_EXHAUSTED, f"an answer has {frame.length} bytes")
                continue
            if frame.kind == frames.RESPONSE:
                self._relayed.discard(frame.stream)
            self.link.send(frame.raw)

    def relay(self, frame: Frame, now: float) -> None:
        """Pass a frame on. One that begins a stream waits for the confidential-data-hub if need be."""
        if frame.kind == frames.REQUEST:
            if self._path is None:
                text = "no confidential-data-hub stands behind this front, and only it could answer this"
                self.answer(frame.stream, answers.failure(Code.UNIMPLEMENTED, text))
                return
            self._relayed.add(frame.stream)
        elif frame.stream not in self._relayed:
            # It belongs to a stream that has ended; a server would take it for a fault of the whole connection.
            return
        if self.behind is not None and not self._waiting:
            self.behind.send(frame.raw)
            return
        if not self._waiting:
            self._give_up = now + PATIENCE_SECONDS
        self._waiting.append(frame)
        self.reach_behind(now)

    def reach_behind(self, now: float) -> None:
        """Connect and send what waits, if it waits and if that can be done now."""
        if not self._waiting or self._path is None:
            return
        if self.behind is None:
            self.behind = _connected(self._path)
        if self.behind is not None:
            for frame in self._waiting:
                self.behind.send(frame.raw)
            self._waiting.clear()
        elif now >= self._give_up:
            self._waiting.clear()
            self._fail_relayed(f"the confidential-data-hub can't be reached at {self._path}")

    def answer(self, stream: int, payload: bytes) -> None:
        """End a stream."""
        if self.is_open:
            self.link.send(frames.response(stream, payload))

    def close(self) -> None:
        """End both connections."""
        self.is_open = False
        self.link.close()
        self._waiting.clear()
        if self.behind is not None:
            self.behind.close()
            self.behind = None

    def _take(self, frame: Frame | TooLong, now: float) -> None:
        if isinstance(frame, TooLong):
            text = f"the message has {frame.length} bytes; at most {frames.MOST_BYTES} are taken"
            self.answer(frame.stream, answers.failure(Code.RESOURCE_EXHAUSTED, text))
            self._relayed.discard(frame.stream)
            return
        if frame.kind != frames.REQUEST:
            self.relay(frame, now)
            return
        try:
            request = Request.FromString(frame.payload)
        except DecodeError:
            self.answer(frame.stream, answers.failure(Code.INVALID_ARGUMENT, "the request can't be decoded"))
            return
        if (request.service, request.method) == _OURS:
            self._mount(self, frame, request)
        else:
            self.relay(frame, now)

    def _lost_behind(self) -> None:
        if self.behind is not None:
            self.behind.close()
            self.behind = None
        self._fail_relayed("the confidential-data-hub ended before it answered; it is started again, so ask again")

    def _fail_relayed(self, text: str) -> None:
        for stream in sorted(self._relayed):
            self._answer_relayed(stream, Code.UNAVAILABLE, text)

    def _answer_relayed(self, stream: int, code: Code, text: str) -> None:
        self._relayed.discard(stream)
        self.answer(stream, answers.failure(code, text))


def _connected(path: str) -> Link | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        return None
    return Link(connection)
