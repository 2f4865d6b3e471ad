"""Evidence to claims, one verifier a TEE. A TEE without a verifier here is refused, never passed through.

A verifier checks signatures and that the evidence carries the expected report data and init-data digest. Whether the
claims are good enough is `csi.broker.appraise`'s question.
"""

from collections.abc import Mapping

from csi.broker.verifiers.base import Expected, Verifier
from csi.broker.verifiers.sample import SampleVerifier
from csi.core.errors import NotReleased
from csi.kbs.messages import Tee

__all__ = ["VERIFIERS", "Expected", "Verifier", "verifier_for"]

VERIFIERS: Mapping[str, Verifier] = {str(Tee.SAMPLE): SampleVerifier()}
"""By TEE name. TDX and SEV-SNP are added here."""


def verifier_for(tee: str, verifiers: Mapping[str, Verifier] = VERIFIERS) -> Verifier:
    """The verifier of a TEE; raises `NotReleased` when there is none."""
    if tee not in verifiers:
        raise NotReleased(f"this broker can't verify evidence of {tee!r}; it verifies: {', '.join(verifiers)}")
    return verifiers[tee]
