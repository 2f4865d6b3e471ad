"""Evidence from Confidential Containers' attestation-agent, by the REST server that a guest image runs beside it.

For a container, which sees no configfs: the agent asks the TEE, and the report data are this program's as ever. Plain HTTP
on the guest's own loopback; whoever answers there can only make evidence that the broker refuses.
"""

import http.client
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from typing import Final

import msgspec

from csi.core.errors import Refused, Unavailable

ADDRESS: Final = ("127.0.0.1", 8006)
SOCKET: Final = "run/confidential-containers/attestation-agent/attestation-agent.sock"
"""Where the kata-agent has the attestation-agent listen, below the root."""
_LIMIT_BYTES: Final = 1024 * 1024
_MARKS: Final = {"tdx": "quote", "snp": "attestation_report", "sample": "svn"}
"""A member that the evidence of each TEE has, and that of no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAttester:
    """Evidence of `tee`, which this guest was seen to be; the agent falls back to its sample without a word."""

    tee: str
    timeout_seconds: float
    address: tuple[str, int] = ADDRESS

    def evidence(self, report_data: bytes) -> object:
        """See `Attester.evidence`. Raises `Unavailable` when nobody answers, `Refused` for evidence of another TEE."""
        text = urlsafe_b64encode(report_data).decode("ascii").rstrip("=")
        status, body = self._get(f"/aa/evidence?runtime_data={text}&encoding=base64")
        if status != http.client.OK:
            raise Unavailable(f"the attestation-agent makes no evidence: status {status}: {shown(body)}")
        return evidence_of(self.tee, body)

    def _get(self, target: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=self.timeout_seconds)
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            body = answer.read(_LIMIT_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            place = ":".join(map(str, self.address))
            raise Unavailable(f"the attestation-agent's REST server ({place}) does not answer: {error}") from error
        finally:
            connection.close()
        return answer.status, body


def evidence_of(tee: str, body: bytes) -> object:
    """The evidence in an agent's answer, however it came. Raises as `AgentAttester.evidence` does."""
    if len(body) > _LIMIT_BYTES:
        raise Unavailable(f"the attestation-agent's evidence has more than {_LIMIT_BYTES} bytes")
    try:
        evidence = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unavailable(f"the attestation-agent's evidence can't be read: {error}") from error
    kinds = [kind for kind, mark in _MARKS.items() if mark in evidence]
    if kinds != [tee]:
        raise Refused(
            f"the attestation-agent made evidence of {', '.join(kinds) or 'an unknown TEE'}, and this guest's TEE is {tee}"
        )
    return evidence


def shown(body: bytes) -> str:
    """The beginning of what an agent said, fit for a message."""
    text = body[:200].decode(errors="replace")
    return "".join(one if one.isprintable() else "?" for one in text)
