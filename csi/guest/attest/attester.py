"""Where a guest's evidence comes from. An attester puts 48 bytes of report data into evidence that a broker can verify.

Those of real TEEs are modules beside this one. The development TEE `sample` proves nothing and works only where the
measured policy allows it. Nothing falls back to it: a guest without a TEE gets an error, and a guest in one never uses it.
"""

import logging
from typing import Protocol

from csi.core.errors import Refused
from csi.kbs import messages as kbs

_log = logging.getLogger(__name__)


class Attester(Protocol):
    """Makes evidence of one kind of TEE."""

    @property
    def tee(self) -> str:
        """The TEE's name in the KBS protocol."""
        ...

    def evidence(self, report_data: bytes) -> object:
        """Fresh evidence that carries `report_data`, as a value that JSON can hold."""
        ...


class SampleAttester:
    """Evidence without any proof, for development and demonstrations."""

    def __init__(self, *, allowed: bool) -> None:
        if not allowed:
            raise Refused(
                "no TEE of this guest can be used for attestation, and the sample TEE, which proves nothing, is off; "
                "the measured policy of a development guest turns it on"
            )
        _log.warning("the sample TEE is in use: it proves nothing, secrets are not protected from the host")

    @property
    def tee(self) -> str:
        """See `Attester.tee`."""
        return str(kbs.Tee.SAMPLE)

    def evidence(self, report_data: bytes) -> object:
        """See `Attester.evidence`."""
        return kbs.sample_evidence(report_data)
