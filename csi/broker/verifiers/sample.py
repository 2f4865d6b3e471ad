"""The development TEE: it checks what can be checked, and nothing of it is signed."""

from csi.broker.claims import SampleClaims
from csi.broker.verifiers.base import Expected
from csi.core.errors import InvalidInput, NotReleased
from csi.kbs import messages as kbs
from csi.kbs import strict_json

_LAUNCH_DIGEST = "abcde"


class SampleVerifier:
    """Believes everything but the report data, which has to be this session's."""

    def verify(self, evidence: object, expected: Expected) -> SampleClaims:
        """See `Verifier.verify`. The init-data digest is taken over unproven, as upstream does for this TEE."""
        try:
            sample = strict_json.convert(evidence, kbs.SampleEvidence, "primary_evidence")
            report_data = kbs.standard_base64(sample.report_data, "primary_evidence.report_data")
        except InvalidInput as error:
            raise NotReleased(f"malformed sample evidence: {error}") from error
        expected.check_digest(report_data)
        sent = expected.init_data()
        return SampleClaims(
            launch_digest=_LAUNCH_DIGEST, init_data=None if sent is None else sent.digest, svn=sample.svn
        )
