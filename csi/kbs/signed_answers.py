"""The broker's signature over an answer about a volume: bound to the path that was asked for and to a nonce of the guest.

TLS alone ends where a proxy ends it. The signer is the key of the attestation tokens: its certificate, which the pinned
authority has issued and which is none of a TLS server, comes with the token. ECDSA P-256 over SHA-256, in base64.
"""

import base64
import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from csi.core.errors import InvalidInput
from csi.core.framing import framed

NONCE_HEADER = "Sealed-Local-Nonce"
"""32 random bytes in hex; the request has it."""
SIGNATURE_HEADER = "Sealed-Local-Signature"
"""The answer has it, when the request had a nonce."""
SIGNER_NAME = "sealed-local attestation tokens"
"""The common name in the signer's certificate."""
_CONTEXT = b"sealed-local/v1 answer"


def sign(key: ec.EllipticCurvePrivateKey, *, path: str, nonce: str, status: int, body: bytes) -> str:
    """The header's value."""
    signature = key.sign(_message(path, nonce, status, body), ec.ECDSA(hashes.SHA256()))
    return base64.b64encode(signature).decode("ascii")


def check(
    key: ec.EllipticCurvePublicKey, signature: str | None, *, path: str, nonce: str, status: int, body: bytes
) -> None:
    """Raise `InvalidInput` unless the signer has given this very answer to this very request."""
    if signature is None:
        raise InvalidInput(SIGNATURE_HEADER, "the answer is not signed")
    try:
        raw = base64.b64decode(signature, validate=True)
        key.verify(raw, _message(path, nonce, status, body), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise InvalidInput(SIGNATURE_HEADER, "it is not the broker's over this request and answer") from error


def signer(certificate_der: bytes, authorities_pem: str) -> ec.EllipticCurvePublicKey:
    """The signer's key. Raises `InvalidInput` unless one of the pinned authorities has issued the certificate for this use.

    Dates are not looked at: the guest's clock is the host's.
    """
    field = "token.x5c"
    try:
        leaf = x509.load_der_x509_certificate(certificate_der)
        authorities = x509.load_pem_x509_certificates(authorities_pem.encode())
    except ValueError as error:
        raise InvalidInput(field, "is not a certificate") from error
    if not any(_issued(leaf, authority) for authority in authorities):
        raise InvalidInput(field, "the pinned authority has not issued the certificate that signs answers")
    names = [name.value for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    key = leaf.public_key()
    if names != [SIGNER_NAME] or _serves(leaf) or not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidInput(field, "the certificate is not one that signs answers")
    return key


def _issued(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _serves(leaf: x509.Certificate) -> bool:
    """Whether it is a certificate for TLS: whoever ends TLS in front of the broker may hold such a key."""
    try:
        leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return False
    return True


def _message(path: str, nonce: str, status: int, body: bytes) -> bytes:
    return framed(_CONTEXT, path.encode(), nonce.encode(), str(status).encode(), hashlib.sha256(body).digest())
