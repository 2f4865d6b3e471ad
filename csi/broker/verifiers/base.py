"""What every verifier is given and gives. A TEE is one module beside this one."""

from dataclasses import dataclass
from typing import Protocol

from csi.broker.release import Claims
from csi.kbs import init_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the evidence must carry: this report data, and the digest of the init-data that was sent (None: none was).

    The init-data is anybody's text until the evidence verifies, and costs time to parse: verifiers ask for its digest last.
    """

    report_data: bytes
    init_data_text: str | None

    def init_data_digest(self) -> str | None:
        """Parse the text, which names its hash; raises `InvalidInput` for a text that is not init-data."""
        return None if self.init_data_text is None else init_data.parse(self.init_data_text).digest


class Verifier(Protocol):
    """Verifies the evidence of one TEE."""

    def verify(self, evidence: object, expected: Expected) -> Claims:
        """The claims that the evidence proves; raises `NotReleased` when it does not verify."""
        ...
