"""SEV-SNP: a report signed by a chip's key (VCEK) or a provider's (VLEK), both certified by AMD.

Evidence is what Confidential Containers' attester sends: the report (its members one by one, or, from our own guest, the
1,184 bytes in base64) and the certificates that the host gave to the guest.
"""

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from csi.broker.claims import SnpClaims, SnpKey, SnpProduct
from csi.broker.verifiers import snp_report
from csi.broker.verifiers.base import Expected
from csi.broker.verifiers.snp_chain import EndorsementKey, Roots, load_der
from csi.broker.verifiers.snp_report import SnpReport
from csi.broker.verifiers.snp_upstream import UpstreamReport, octets, report_bytes
from csi.core.errors import InvalidInput, NotReleased
from csi.kbs import messages as kbs
from csi.kbs import strict_json

_MOST_CERTIFICATES: Final = 8
_AUTHORITIES: Final = ("ASK", "ARK")


class _Certificate(msgspec.Struct, frozen=True, kw_only=True):
    cert_type: object
    data: str | list[int]


class _Evidence(msgspec.Struct, frozen=True, kw_only=True):
    attestation_report: str | UpstreamReport
    cert_chain: list[_Certificate] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpVerifier:
    """Verifies reports against AMD's roots. `more` gives intermediates that an operator imported, and
    `revoked` what AMD has taken back."""

    roots: Roots = field(default_factory=Roots.of_amd)
    more: Callable[[], Sequence[x509.Certificate]] = tuple
    revoked: Callable[[], Mapping[SnpProduct, frozenset[int]]] = dict
    clock: Callable[[], float] = time.time

    def verify(self, evidence: object, expected: Expected) -> SnpClaims:
        """See `Verifier.verify`."""
        try:
            decoded = strict_json.convert(evidence, _Evidence, "primary_evidence")
            raw = _raw(decoded.attestation_report)
            report = snp_report.parse(raw)
            key = self._key(report.signing_key, decoded.cert_chain or [])
            _check_signature(report, key)
            claims = _claims(report, key)
            _check_same_platform(report, claims, key)
        except InvalidInput as error:
            raise NotReleased(f"malformed SEV-SNP evidence: {error}") from error
        expected.check_report_data(report.report_data)
        return replace(claims, init_data=expected.bound_init_data(report.host_data, "HOSTDATA"))

    def _key(self, kind: SnpKey, table: Sequence[_Certificate]) -> EndorsementKey:
        if len(table) > _MOST_CERTIFICATES:
            raise NotReleased(f"{len(table)} certificates in the evidence, more than {_MOST_CERTIFICATES}")
        leaves = [item for item in table if item.cert_type == kind.upper()]
        if len(leaves) != 1:
            raise NotReleased(
                f"the report is signed with the {kind.upper()}, and the evidence has {len(leaves)} certificates of it; "
                "the host has to give the guest its certificate table"
            )
        now = dt.datetime.fromtimestamp(self.clock(), dt.UTC)
        sent = [load_der(_bytes(item), str(item.cert_type)) for item in table if item.cert_type in _AUTHORITIES]
        for certificate in sent:
            self.roots.check_authority(certificate, now)
        leaf = load_der(_bytes(leaves[0]), kind.upper())
        roots = self.roots.with_intermediates([*self.more(), *sent]).without(self.revoked())
        return roots.endorsement_key(kind, leaf, now)


def _raw(report: str | UpstreamReport) -> bytes:
    if isinstance(report, str):
        return kbs.standard_base64(report, "attestation_report")
    return report_bytes(report)


def _bytes(certificate: _Certificate) -> bytes:
    if isinstance(certificate.data, str):
        return kbs.standard_base64(certificate.data, "cert_chain.data")
    return octets(certificate.data, "cert_chain.data")


def _check_signature(report: SnpReport, key: EndorsementKey) -> None:
    try:
        key.key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError) as error:
        raise NotReleased(f"the report is not signed by the {key.kind.upper()} that came with it") from error


def _check_same_platform(report: SnpReport, claims: SnpClaims, key: EndorsementKey) -> None:
    """The certificate is of this chip, this product, and of the very TCB that the report names."""
    if report.cpu is not None and snp_report.product_of_cpu(report.cpu) is not key.product:
        raise NotReleased(f"the report is of a {snp_report.product_of_cpu(report.cpu)}, its key of a {key.product}")
    if key.chip_id is not None and report.chip_id != key.chip_id.ljust(len(report.chip_id), b"\0"):
        raise NotReleased("the report names another chip than the certificate of its key, or hides it (MASK_CHIP_ID)")
    if claims.reported_tcb != key.tcb:
        raise NotReleased(f"the report names the TCB {claims.reported_tcb}, the certificate of its key {key.tcb}")


def _claims(report: SnpReport, key: EndorsementKey) -> SnpClaims:
    product = key.product
    return SnpClaims(
        launch_measurement=report.measurement.hex(),
        host_data=report.host_data.hex(),
        family_id=report.family_id.hex(),
        image_id=report.image_id.hex(),
        id_key_digest=report.id_key_digest.hex(),
        author_key_digest=report.author_key_digest.hex(),
        policy=report.policy,
        vmpl=report.vmpl,
        guest_svn=report.guest_svn,
        chip_id=report.chip_id.hex(),
        product=product,
        signing_key=key.kind,
        current_tcb=snp_report.tcb(report.current_tcb, product),
        reported_tcb=snp_report.tcb(report.reported_tcb, product),
        committed_tcb=snp_report.tcb(report.committed_tcb, product),
        launch_tcb=snp_report.tcb(report.launch_tcb, product),
        report_data=report.report_data.hex(),
        init_data=None,
        test_authority=key.test,
    )
