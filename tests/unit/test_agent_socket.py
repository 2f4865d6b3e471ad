"""The attestation-agent asked by its own socket: a played agent that speaks ttRPC, over a real socket."""

import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csi.core.errors import Refused, Unavailable
from csi.guest.attest.agent import SOCKET, AgentAttester
from csi.guest.attest.agent_socket import SocketAttester
from csi.guest.attest.platform import Platform
from csi.guest.broker_settings import BrokerSettings
from csi.guest.serve import frames
from csi.guest.serve.frames import Frame, Reader
from csi.guest.serve.proto.attestation_agent_pb2 import GetEvidenceRequest, GetEvidenceResponse
from csi.guest.serve.proto.ttrpc_pb2 import Request, Response, Status

DATA = bytes(range(48))
SETTINGS = BrokerSettings(url="https://b", ca_pem="", init_data="", allow_sample=True, attestation_agent=True)


def answer(body: bytes, *, status: Status | None = None, stream: int = 1) -> bytes:
    payload = GetEvidenceResponse(Evidence=body).SerializeToString()
    return frames.response(stream, Response(status=status, payload=payload).SerializeToString())


class Agent:
    """Answers one question with the bytes that `reply` makes of the frame, then ends the connection."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked = path, list[Request]()
        self.reply: Callable[[Frame], bytes] = lambda _: answer(b'{"quote": "q"}')
        path.parent.mkdir(parents=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(path))
        self.socket.listen()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                found, reader = list[Any](), Reader()
                while not found and (received := connection.recv(4096)):
                    found = reader.feed(received)
                if found:
                    self.asked.append(Request.FromString(found[0].payload))
                    # In two pieces: an answer may come in any.
                    whole = self.reply(found[0])
                    connection.sendall(whole[:7])
                    connection.sendall(whole[7:])

    def attester(self, tee: str = "tdx") -> SocketAttester:
        return SocketAttester(tee=tee, timeout_seconds=30, path=self.path)


@pytest.fixture
def root() -> Iterator[Path]:
    # A socket's path has at most 107 bytes, and the names that pytest gives to folders are long.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def served(root: Path) -> Iterator[Agent]:
    agent = Agent(root / SOCKET)
    thread = threading.Thread(target=agent.serve)
    thread.start()
    yield agent
    agent.socket.shutdown(socket.SHUT_RDWR)
    thread.join()
    agent.socket.close()


def test_the_agent_is_asked_for_exactly_the_report_data(served: Agent) -> None:
    assert served.attester().evidence(DATA) == {"quote": "q"}
    (asked,) = served.asked
    assert (asked.service, asked.method) == ("attestation_agent.AttestationAgentService", "GetEvidence")
    assert GetEvidenceRequest.FromString(asked.payload).RuntimeData == DATA
    assert asked.payload == b"\x0a\x30" + DATA
    assert asked.timeout_nano == 30 * 10**9


@pytest.mark.parametrize("tee", ["tdx", "snp"])
def test_an_agent_that_falls_back_to_its_sample_is_refused(served: Agent, tee: str) -> None:
    served.reply = lambda _: answer(json.dumps({"svn": "1", "report_data": ""}).encode())
    with pytest.raises(Refused, match=f"made evidence of sample, and this guest's TEE is {tee}"):
        served.attester(tee).evidence(DATA)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (answer(b'{"quote": "q"}', status=Status(code=13, message="no\x00 TEE")), r"code 13: no\? TEE"),
        (answer(b"[]"), "evidence can't be read"),
        (answer(b" " * (1024 * 1024 + 1)), "more than 1048576 bytes"),
        (answer(b'{"quote": "q"}', stream=3), "something else than an answer"),
        (frames.request(1, b""), "something else than an answer"),
        (frames.response(1, b"\xff"), "answer can't be read"),
        ((2**32 - 1).to_bytes(4, "big") + bytes(6), "answer has 4294967295 bytes"),
        (b"", "ended the connection"),
        (answer(b'{"quote": "q"}')[:-1], "ended the connection"),
    ],
)
def test_an_agent_that_answers_anything_else_is_unavailable(served: Agent, sent: bytes, said: str) -> None:
    served.reply = lambda _: sent
    with pytest.raises(Unavailable, match=said):
        served.attester().evidence(DATA)


def test_an_agent_that_says_nothing_is_waited_for_no_longer_than_the_policy_says(root: Path) -> None:
    silent = Agent(root / SOCKET)
    with silent.socket, pytest.raises(Unavailable, match="timed out"):
        SocketAttester(tee="tdx", timeout_seconds=0.05, path=silent.path).evidence(DATA)


def test_no_agent_is_unavailable(root: Path) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        SocketAttester(tee="tdx", timeout_seconds=1, path=root / "none").evidence(DATA)


def test_the_socket_is_used_where_it_is_and_the_policy_turns_the_agent_on(served: Agent, root: Path) -> None:
    found = Platform(root=root).attester(SETTINGS)
    assert isinstance(found, SocketAttester)
    assert found.path == root / "run/confidential-containers/attestation-agent/attestation-agent.sock"
    (root / "other").mkdir()
    assert isinstance(Platform(root=root / "other").attester(SETTINGS), AgentAttester)
