"""Evidence to claims, one verifier a TEE. A TEE without a verifier here is refused, never passed through.

A verifier checks signatures and that the evidence carries the expected report data and init-data digest. Whether the
claims are good enough is `csi.broker.appraise`'s question.
"""

from collections.abc import Mapping

from csi.broker.verifiers.base import Expected, Verifier
from csi.core.errors import NotReleased

__all__ = ["Expected", "Verifier", "verifier_for"]


def verifier_for(tee: str, verifiers: Mapping[str, Verifier]) -> Verifier:
    """The verifier of a TEE; raises `NotReleased` when there is none."""
    if tee not in verifiers:
        raise NotReleased(f"this broker can't verify evidence of {tee!r}; it verifies: {', '.join(verifiers)}")
    return verifiers[tee]
