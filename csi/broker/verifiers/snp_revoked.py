"""AMD's revocation lists: which authorities a root (ARK) has taken back. They are imported, never fetched.

A list names the ones that stand between a root and keys of chips. It counts after its end, too: nothing that AMD took back
comes back because an operator forgot to import the next list.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from csi.broker.claims import SnpProduct
from csi.broker.verifiers.snp_chain import SIGNATURE, Roots, check_frame
from csi.core.errors import InvalidInput, NotReleased

_FIELD = "revocation list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """One list whose signature is that of a product's root."""

    product: SnpProduct
    issued: dt.datetime
    expires: dt.datetime
    serials: frozenset[int]
    der: bytes

    @classmethod
    def parse(cls, der: bytes, roots: Roots) -> Self:
        """Read and verify a list in DER; raises `InvalidInput`. Whether it has ended is not asked here."""
        try:
            found = x509.load_der_x509_crl(der)
            whole = found.public_bytes(serialization.Encoding.DER) == der
            issuer = next((one for one in roots.roots.items() if _signed_by(found, one[1])), None)
            check_frame(der, found.tbs_certlist_bytes, found.signature)
            serials = frozenset(one.serial_number for one in found)
        except (ValueError, TypeError, x509.InvalidVersion, NotReleased) as error:
            raise InvalidInput(_FIELD, f"can't be read: {error}") from error
        if issuer is None or not whole or found.issuer != issuer[1].subject:
            raise InvalidInput(_FIELD, "not signed by a root of AMD's that this broker knows")
        if found.next_update_utc is None:
            raise InvalidInput(_FIELD, "without an end")
        return cls(
            product=issuer[0], issued=found.last_update_utc, expires=found.next_update_utc, serials=serials, der=der
        )


def _signed_by(crl: x509.CertificateRevocationList, root: x509.Certificate) -> bool:
    key = root.public_key()
    assert isinstance(key, rsa.RSAPublicKey)  # noqa: S101
    try:
        key.verify(crl.signature, crl.tbs_certlist_bytes, SIGNATURE, hashes.SHA384())
    except InvalidSignature:
        return False
    return True
