"""Evidence to claims, one verifier a TEE. A TEE without a verifier here is refused, never passed through.

A verifier checks signatures and that the evidence carries the expected report data and init-data digest. Whether the
claims are good enough is `csi.broker.appraise`'s question.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from csi.broker.release import Claims
from csi.core.errors import InvalidInput, NotReleased
from csi.kbs import init_data, strict_json
from csi.kbs import messages as kbs

_SAMPLE_LAUNCH_DIGEST = "abcde"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the evidence must carry: this report data, and the digest of the init-data that was sent (None: none was).

    The init-data is anybody's text until the evidence verifies, and costs time to parse: verifiers ask for its digest last.
    """

    report_data: bytes
    init_data_text: str | None

    def init_data_digest(self) -> str | None:
        """Parse the text, which names its hash; raises `InvalidInput` for one that is no init-data."""
        return None if self.init_data_text is None else init_data.parse(self.init_data_text).digest


class Verifier(Protocol):
    """Verifies the evidence of one TEE."""

    def verify(self, evidence: object, expected: Expected) -> Claims:
        """The claims that the evidence proves; raises `NotReleased` when it does not verify."""
        ...


class SampleVerifier:
    """The development TEE: it checks what can be checked, and nothing of it is signed."""

    def verify(self, evidence: object, expected: Expected) -> Claims:
        """See `Verifier.verify`. The init-data digest is taken over unproven, as upstream does for this TEE."""
        try:
            sample = strict_json.convert(evidence, kbs.SampleEvidence, "primary_evidence")
            report_data = kbs.standard_base64(sample.report_data, "primary_evidence.report_data")
        except InvalidInput as error:
            raise NotReleased(f"malformed sample evidence: {error}") from error
        if not hmac.compare_digest(report_data, expected.report_data):
            raise NotReleased("the evidence does not carry this session's nonce and key")
        return Claims(
            tee=str(kbs.Tee.SAMPLE),
            launch_digest=_SAMPLE_LAUNCH_DIGEST,
            init_data=expected.init_data_digest(),
            svn=sample.svn,
        )


VERIFIERS: Mapping[str, Verifier] = {str(kbs.Tee.SAMPLE): SampleVerifier()}
"""By TEE name. TDX and SEV-SNP are added here."""


def verifier_for(tee: str, verifiers: Mapping[str, Verifier] = VERIFIERS) -> Verifier:
    """The verifier of a TEE; raises `NotReleased` when there is none."""
    if tee not in verifiers:
        raise NotReleased(f"this broker can't verify evidence of {tee!r}; it verifies: {', '.join(verifiers)}")
    return verifiers[tee]
