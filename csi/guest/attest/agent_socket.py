"""Evidence from Confidential Containers' attestation-agent by its own socket, which speaks ttRPC.

For a program of the guest image, which starts where no REST server may be. One question a connection; what comes back is
checked as the REST server's answer is.
"""

import math
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from csi.core.errors import Unavailable
from csi.guest.attest.agent import evidence_of, shown
from csi.guest.serve import frames
from csi.guest.serve.frames import Frame, Reader, TooLong
from csi.guest.serve.proto.attestation_agent_pb2 import GetEvidenceRequest, GetEvidenceResponse
from csi.guest.serve.proto.ttrpc_pb2 import Request, Response

_SERVICE: Final = "attestation_agent.AttestationAgentService"
_METHOD: Final = "GetEvidence"
_STREAM: Final = 1
_PIECE_BYTES: Final = 64 * 1024
_NANO: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketAttester:
    """Evidence of `tee`, which this guest was seen to be, from the agent that listens at `path`."""

    tee: str
    timeout_seconds: float
    """For the whole exchange."""
    path: Path

    def evidence(self, report_data: bytes) -> object:
        """See `Attester.evidence`. Raises `Unavailable` when nobody answers, `Refused` for evidence of another TEE."""
        try:
            frame = self._asked(self._question(report_data))
        except OSError as error:
            raise Unavailable(f"the attestation-agent ({self.path}) does not answer: {error}") from error
        if isinstance(frame, TooLong):
            raise Unavailable(f"the attestation-agent's answer has {frame.length} bytes")
        if (frame.stream, frame.kind) != (_STREAM, frames.RESPONSE):
            raise Unavailable("the attestation-agent sent something else than an answer")
        try:
            response = Response.FromString(frame.payload)
            body = GetEvidenceResponse.FromString(response.payload).Evidence
        except DecodeError as error:
            raise Unavailable(f"the attestation-agent's answer can't be read: {error}") from error
        status = response.status
        if status.code:
            raise Unavailable(
                f"the attestation-agent makes no evidence: code {status.code}: {shown(status.message.encode())}"
            )
        return evidence_of(self.tee, body)

    def _question(self, report_data: bytes) -> bytes:
        request = Request(
            service=_SERVICE,
            method=_METHOD,
            payload=GetEvidenceRequest(RuntimeData=report_data).SerializeToString(),
            timeout_nano=math.ceil(self.timeout_seconds * _NANO),
        )
        return frames.request(_STREAM, request.SerializeToString())

    def _asked(self, question: bytes) -> Frame | TooLong:
        """The first frame that comes back."""
        end, reader = time.monotonic() + self.timeout_seconds, Reader()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self.timeout_seconds)
            connection.connect(str(self.path))
            connection.sendall(question)
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError("timed out")
                connection.settimeout(left)
                received = connection.recv(_PIECE_BYTES)
                if not received:
                    raise ConnectionError("it ended the connection")
                if found := reader.feed(received):
                    return found[0]
