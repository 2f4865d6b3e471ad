"""What every verifier is given and gives. A new TEE is one module beside this one."""

import hmac
from dataclasses import dataclass
from typing import Protocol

from csi.broker.claims import Claims
from csi.core.errors import NotReleased
from csi.kbs import init_data

REPORT_DATA_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the evidence must carry: this report data, and the digest of the init-data that was sent (None: none was).

    The init-data is anybody's text until the evidence verifies, and costs time to parse: verifiers ask for its digest last.
    """

    report_data: bytes
    init_data_text: str | None

    def check_report_data(self, found: bytes) -> None:
        """Raise `NotReleased` unless a TEE's 64 bytes carry this session's digest, filled up with zeros on the right."""
        if not hmac.compare_digest(found, self.report_data.ljust(REPORT_DATA_BYTES, b"\0")):
            raise NotReleased("the evidence does not carry this session's nonce and key")

    def check_digest(self, found: bytes) -> None:
        """The same for a TEE that carries the digest as it is."""
        if not hmac.compare_digest(found, self.report_data):
            raise NotReleased("the evidence does not carry this session's nonce and key")

    def init_data(self) -> init_data.InitDataText | None:
        """Parse the text, which names its hash; raises `InvalidInput` for a text that is not init-data."""
        return None if self.init_data_text is None else init_data.parse(self.init_data_text)

    def bound_init_data(self, register: bytes, name: str) -> str | None:
        """The digest of the text that was sent, proven by a TEE's register (`InitDataText.fills`): the whole text was sent,
        so its whole digest is known. Raises `NotReleased`.
        """
        sent = self.init_data()
        if sent is None:
            return None
        if not sent.fills(register):
            raise NotReleased(f"{name} does not carry the digest of the init-data that was sent ({sent.digest})")
        return sent.digest


class Verifier(Protocol):
    """Verifies the evidence of one TEE."""

    def verify(self, evidence: object, expected: Expected) -> Claims:
        """The claims that the evidence proves; raises `NotReleased` when it does not verify."""
        ...
