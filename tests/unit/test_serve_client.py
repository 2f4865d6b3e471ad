"""One connection of the front, with a clock of the test's own."""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.guest.serve import frames
from csi.guest.serve.client import PATIENCE_SECONDS, Client
from csi.guest.serve.frames import REQUEST, Frame, Reader
from csi.guest.serve.link import Link
from csi.guest.serve.proto.ttrpc_pb2 import Request, Response

UNAVAILABLE, INTERNAL = 14, 13


SENT = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda service, method, payload: Request(service=service, method=method, payload=payload).SerializeToString(),
        st.sampled_from(["api.SecureMountService", "api.X", ""]),
        st.sampled_from(["SecureMount", "Y"]),
        st.binary(max_size=40),
    ),
)
"""What a request's frame may carry: anything."""


class Ends:
    """A client of the front and the caller's end of its connection."""

    def __init__(self, behind: Path | None) -> None:
        self.caller, front = socket.socketpair()
        self.client = Client(Link(front), behind=str(behind) if behind else None, mount=self._mount)

    def _mount(self, *_: object) -> None:
        raise RuntimeError("a fault of ours")

    def ask(self, service: str, method: str, stream: int, now: float) -> None:
        self.send(Request(service=service, method=method).SerializeToString(), stream, REQUEST)
        self.client.receive(now)

    def send(self, payload: bytes, stream: int, kind: int) -> None:
        self.caller.send(struct.pack(">IIBB", len(payload), stream, kind, 1) + payload)

    def told(self) -> list[tuple[int, Response]]:
        self.caller.setblocking(False)
        try:
            received = self.caller.recv(65536)
        except BlockingIOError:
            return []
        found = [frame for frame in Reader().feed(received) if isinstance(frame, Frame)]
        return [(frame.stream, Response.FromString(frame.payload)) for frame in found]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path / "behind.sock")
    yield made
    made.caller.close()
    made.client.close()


def test_a_hub_that_never_comes_is_told_when_patience_ends_and_not_before(ends: Ends) -> None:
    ends.ask("api.X", "Y", 1, now=100.0)
    ends.ask("api.X", "Y", 3, now=101.0)
    ends.client.reach_behind(100.0 + PATIENCE_SECONDS - 0.001)
    assert ends.told() == []
    assert ends.client.waits
    ends.client.reach_behind(100.0 + PATIENCE_SECONDS)
    assert [(stream, answer.status.code) for stream, answer in ends.told()] == [(1, UNAVAILABLE), (3, UNAVAILABLE)]
    assert not ends.client.waits


def test_what_waited_for_the_hub_is_sent_in_its_order_and_as_it_came(ends: Ends, tmp_path: Path) -> None:
    for stream in (1, 3, 5):
        ends.ask("api.X", f"Y{stream}", stream, now=100.0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "behind.sock"))
        listener.listen()
        ends.client.reach_behind(101.0)
        connection, _ = listener.accept()
        with connection:
            found = Reader().feed(connection.recv(65536))
    assert [(f.stream, Request.FromString(f.payload).method) for f in found if isinstance(f, Frame)] == [
        (1, "Y1"), (3, "Y3"), (5, "Y5"),
    ]  # fmt: skip


def test_a_fault_of_ours_costs_the_stream_and_not_the_connection(ends: Ends) -> None:
    ends.ask("api.SecureMountService", "SecureMount", 7, now=100.0)
    ((stream, answer),) = ends.told()
    assert (stream, answer.status.code) == (7, INTERNAL)
    assert ends.client.is_open


def test_a_peer_that_does_not_read_stops_what_is_read_for_it(ends: Ends) -> None:
    part = frames.response(1, bytes(1024 * 1024))
    for _ in range(20):
        ends.client.link.send(part)
    assert ends.client.link.is_full
    ends.caller.setblocking(True)
    while ends.client.link.is_full:
        ends.caller.recv(65536)
        ends.client.link.flush()
    assert ends.client.link.waits_to_send


@given(st.lists(st.tuples(SENT, st.integers(0, 2**32 - 1), st.sampled_from([REQUEST, 0, 2, 3, 255])), max_size=12))
def test_whatever_comes_each_request_has_one_answer_and_the_connection_stays(
    sent: list[tuple[bytes, int, int]],
) -> None:
    ends = Ends(None)
    with ends.caller:
        for payload, stream, kind in sent:
            ends.send(payload, stream, kind)
            ends.client.receive(100.0)
        assert ends.client.is_open
        assert [stream for stream, _ in ends.told()] == [stream for _, stream, kind in sent if kind == REQUEST]
        ends.client.close()
