"""Certificates of Intel: strict reading of a PEM chain that ends in the one root, and checks of what a chain signs."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from csi.core.errors import InvalidInput

ROOT_SHA256: Final = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""SHA-256 of "Intel SGX Root CA" (DER), the root of TDX as well; `dcap-qvl` carries the same certificate."""
_UNREADABLE: Final = (
    ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.DuplicateExtension, x509.InvalidVersion,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelRoot:
    """What every chain ends in. `der` is None for Intel's own, which `dcap-qvl` carries; tests have theirs."""

    sha256: str = ROOT_SHA256
    der: bytes | None = None

    @classmethod
    def of_tests(cls, pem: bytes) -> Self:
        """An authority that is not Intel's, in the place of Intel's: one certificate in PEM. Raises `InvalidInput`."""
        try:
            (found,) = x509.load_pem_x509_certificates(pem)
        except _UNREADABLE as error:
            raise InvalidInput("test authority", f"not one certificate in PEM: {error}") from error
        return cls(sha256=found.fingerprint(hashes.SHA256()).hex(), der=found.public_bytes(serialization.Encoding.DER))

    @property
    def test(self) -> bool:
        """Whether it is not Intel's."""
        return self.sha256 != ROOT_SHA256


INTEL: Final = IntelRoot()


@lru_cache(maxsize=64)
def check_pem_chain(text: str, length: int, field: str, root: IntelRoot) -> tuple[x509.Certificate, ...]:
    """The certificates of a chain, leaf first. Raises `InvalidInput` unless the text is exactly those certificates in PEM,
    each signed by the next, and the last is `root`. Remembered, as the same few chains come again and again.
    """
    try:
        chain = x509.load_pem_x509_certificates(text.encode("utf-8"))
        pem = "".join(one.public_bytes(serialization.Encoding.PEM).decode("ascii") for one in chain)
        if len(chain) != length or pem != text:
            raise InvalidInput(field, f"not exactly {length} certificates in PEM")
        if chain[-1].fingerprint(hashes.SHA256()).hex() != root.sha256:
            raise InvalidInput(field, "the last certificate is not Intel's root")
        for certificate, issuer in zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True):
            certificate.verify_directly_issued_by(issuer)
    except _UNREADABLE as error:
        raise InvalidInput(field, f"not a chain of certificates: {error}") from error
    return tuple(chain)


def check_signed(content: bytes, signature: bytes, signer: x509.Certificate, field: str) -> None:
    """Raise `InvalidInput` unless the 64 bytes r and s are the signer's, over `content`."""
    key = signer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(signature) != 64:
        raise InvalidInput(field, "not an ECDSA P-256 signature")
    numbers = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(*numbers), content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise InvalidInput(field, "not signed by the certificate that came with it") from error


def check_crl(der: bytes, issuer: x509.Certificate, field: str) -> x509.CertificateRevocationList:
    """A revocation list of this issuer; raises `InvalidInput`."""
    key = issuer.public_key()
    try:
        found = x509.load_der_x509_crl(der)
        whole = found.public_bytes(serialization.Encoding.DER) == der
        if not isinstance(key, ec.EllipticCurvePublicKey) or not whole or not found.is_signature_valid(key):
            raise InvalidInput(field, "not signed by the certificate that came with it")
    except _UNREADABLE as error:
        raise InvalidInput(field, f"not a revocation list: {error}") from error
    return found
