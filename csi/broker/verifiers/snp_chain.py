"""Certificates of AMD: root (ARK) to intermediate (ASK, or ASVK for VLEK) to the key that signs reports.

The roots of Milan, Genoa and Turin come with the program; whatever else a guest or an operator brings has to lead to one
of them. Certificates are read with `cryptography`; nothing is fetched.
"""

import datetime as dt
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from importlib import resources
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

from csi.broker.claims import SnpKey, SnpProduct, SnpTcb
from csi.core.errors import InvalidInput, NotReleased

# AMD gives VCEK certificates the serial number 0, which `cryptography` complains about at each one.
warnings.filterwarnings("ignore", message="Parsed a serial number which wasn't positive")

_OID: Final = "1.3.6.1.4.1.3704.1"
_CHIP_ID: Final = f"{_OID}.4"
_TCB: Final = {
    "bootloader": f"{_OID}.3.1", "tee": f"{_OID}.3.2", "snp": f"{_OID}.3.3", "microcode": f"{_OID}.3.8",
}  # fmt: skip
_FMC: Final = f"{_OID}.3.9"
SIGNATURE: Final = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementKey:
    """A VCEK or VLEK whose chain leads to a pinned root."""

    kind: SnpKey
    product: SnpProduct
    tcb: SnpTcb
    chip_id: bytes | None
    test: bool
    key: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """By product its root, and the intermediates that are known beforehand."""

    roots: Mapping[SnpProduct, x509.Certificate]
    intermediates: tuple[x509.Certificate, ...]
    revoked: Mapping[SnpProduct, frozenset[int]] = field(default_factory=dict)
    """By product the serial numbers of what its root has taken back."""
    test: bool = False

    @classmethod
    def of_amd(cls) -> Self:
        """The ones that come with this program (see docs/attestation.md for where they are from)."""
        chains = {product: _chain_of_amd(product) for product in SnpProduct}
        return cls(
            roots={product: root for product, (_, root) in chains.items()},
            intermediates=tuple(intermediate for intermediate, _ in chains.values()),
        )

    @classmethod
    def of_tests(cls, pem: bytes) -> Self:
        """An authority that is not AMD's, in the place of all of AMD's: PEM of roots named `ARK-<product>` and of what is
        below them. Raises `InvalidInput`.
        """
        try:
            found = x509.load_pem_x509_certificates(pem)
            names = {product: f"ARK-{product.title()}" for product in SnpProduct}
            roots = {
                product: one for product, name in names.items() for one in found if common_name(one.subject) == name
            }
        except (ValueError, x509.InvalidVersion) as error:
            raise InvalidInput("test authority", f"not certificates in PEM: {error}") from error
        if not roots:
            raise InvalidInput("test authority", f"none of its certificates is called {', '.join(names.values())}")
        return cls(roots=roots, intermediates=tuple(one for one in found if one not in roots.values()), test=True)

    def with_intermediates(self, found: Sequence[x509.Certificate]) -> Self:
        """The same roots, with further certificates that may stand between them and a key."""
        return replace(self, intermediates=(*self.intermediates, *found))

    def without(self, revoked: Mapping[SnpProduct, frozenset[int]]) -> Self:
        """The same roots, which have taken these serial numbers back."""
        return replace(self, revoked=revoked)

    def check_authority(self, certificate: x509.Certificate, now: dt.datetime) -> None:
        """Raise `NotReleased` unless this is one of the roots, or directly below one."""
        if certificate not in self.roots.values():
            root = _signer(certificate, tuple(self.roots.values()))
            for one in (certificate, root):
                _Validity.of(one).check(now)

    def endorsement_key(self, kind: SnpKey, leaf: x509.Certificate, now: dt.datetime) -> EndorsementKey:
        """Verify a key's certificate up to a root; raises `NotReleased`."""
        whole = leaf.public_bytes(serialization.Encoding.DER)
        found = _certified(kind, leaf, whole, self.intermediates, tuple(self.roots.items()))
        for certificate in found.chain:
            certificate.check(now)
        if found.intermediate in self.revoked.get(found.key.product, ()):
            raise NotReleased(f"AMD has revoked {found.chain[1].name!r}, which certifies this chip's key")
        return found.key if not self.test else replace(found.key, test=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Validity:
    """From when to when a certificate is good."""

    name: str
    begins: dt.datetime
    ends: dt.datetime

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        return cls(
            name=common_name(certificate.subject),
            begins=certificate.not_valid_before_utc,
            ends=certificate.not_valid_after_utc,
        )

    def check(self, now: dt.datetime) -> None:
        """Raise `NotReleased` at any other time."""
        if not self.begins <= now <= self.ends:
            raise NotReleased(
                f"the certificate of {self.name!r} is valid from {self.begins:%Y-%m-%d} to {self.ends:%Y-%m-%d}, and it is "
                f"{now:%Y-%m-%d}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certified:
    """What a key's certificate says, signed up to a root. Whether that is in time and not revoked is asked each time."""

    key: EndorsementKey
    chain: tuple[_Validity, _Validity, _Validity]
    """Of the leaf, the intermediate and the root."""
    intermediate: int
    """Its serial number."""


@lru_cache(maxsize=1024)
def _certified(
    kind: SnpKey,
    leaf: x509.Certificate,
    whole: bytes,
    intermediates: tuple[x509.Certificate, ...],
    roots: tuple[tuple[SnpProduct, x509.Certificate], ...],
) -> _Certified:
    """Raises `NotReleased`. Remembered by every byte, for what did verify: guests of a machine all come with its one
    certificate.
    """
    intermediate = _found_signer(leaf, whole, intermediates)
    root = _signer(intermediate, tuple(one for _, one in roots))
    if (name := common_name(leaf.subject)) != f"SEV-{kind.upper()}":
        raise NotReleased(f"the certificate of {name!r} is not one of a {kind.upper()}")
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise NotReleased(f"the {kind.upper()} certificate holds no P-384 key")
    product = next(product for product, one in roots if one == root)
    chip_id = _extension(leaf, _CHIP_ID) if kind is SnpKey.VCEK else None
    return _Certified(
        key=EndorsementKey(kind=kind, product=product, tcb=_tcb(leaf, product), chip_id=chip_id, test=False, key=key),
        chain=(_Validity.of(leaf), _Validity.of(intermediate), _Validity.of(root)),
        intermediate=intermediate.serial_number,
    )


def load_der(der: bytes, name: str) -> x509.Certificate:
    """Read one certificate that has nothing before or after it; raises `NotReleased`. Its members are read later, by who
    has verified it.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise NotReleased(f"the {name} certificate can't be read: {error}") from error
    if certificate.public_bytes(serialization.Encoding.DER) != der:
        raise NotReleased(f"the {name} certificate has bytes that don't belong to it")
    return certificate


def _signer(certificate: x509.Certificate, candidates: tuple[x509.Certificate, ...]) -> x509.Certificate:
    """The one that signed it; see `_found_signer`, which remembers by every byte."""
    return _found_signer(certificate, certificate.public_bytes(serialization.Encoding.DER), candidates)


@lru_cache(maxsize=1024)
def _found_signer(
    certificate: x509.Certificate, whole: bytes, candidates: tuple[x509.Certificate, ...]
) -> x509.Certificate:
    """The one that signed it, with RSA-PSS over SHA-384 and nothing else. Raises `NotReleased`.

    No member of the certificate is read before: nobody has vouched for it yet. Remembered for what did verify; time and
    revocation are no part of it and are looked at each time.
    """
    for candidate in candidates:
        key = candidate.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            continue
        try:
            key.verify(certificate.signature, certificate.tbs_certificate_bytes, SIGNATURE, hashes.SHA384())
        except InvalidSignature:
            continue
        check_frame(whole, certificate.tbs_certificate_bytes, certificate.signature)
        if certificate.issuer != candidate.subject:
            raise NotReleased("the issuer in a certificate is not the subject of who signed it")
        return candidate
    known = ", ".join(common_name(candidate.subject) for candidate in candidates)
    raise NotReleased(
        f"a certificate is not signed by an authority of AMD's that this broker knows ({known}); for a VLEK, import AMD's "
        "VLEK chain: sealed-local broker collateral import FILE"
    )


def check_frame(whole: bytes, signed: bytes, signature: bytes) -> None:
    """The signature's algorithm stands twice, signed and unsigned: both have to be the same, byte for byte. Raises
    `NotReleased`.
    """
    bits = b"\0" + signature
    algorithm = whole.partition(signed)[2].removesuffix(b"\x03\x82" + len(bits).to_bytes(2, "big") + bits)
    if not algorithm or algorithm not in signed:
        raise NotReleased("the algorithm of a certificate's signature is not the one that it is signed with")


def _tcb(leaf: x509.Certificate, product: SnpProduct) -> SnpTcb:
    parts = {part: _small_number(leaf, oid) for part, oid in _TCB.items()}
    return SnpTcb(fmc=_small_number(leaf, _FMC) if product is SnpProduct.TURIN else 0, **parts)


def _small_number(leaf: x509.Certificate, oid: str) -> int:
    """A DER INTEGER from 0 to 255 in its one right encoding."""
    value = _extension(leaf, oid)
    number = int.from_bytes(value[2:], "big")
    if number > 255 or value != bytes((2, 1, number) if number < 0x80 else (2, 2, 0, number)):
        raise NotReleased(f"extension {oid} of the certificate is not a number from 0 to 255")
    return number


def _extension(certificate: x509.Certificate, oid: str) -> bytes:
    try:
        extension = certificate.extensions.get_extension_for_oid(ObjectIdentifier(oid)).value
    except x509.ExtensionNotFound as error:
        raise NotReleased(f"the certificate has no extension {oid}") from error
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise NotReleased(f"extension {oid} of the certificate is not AMD's")
    return extension.value


def common_name(name: x509.Name) -> str:
    """The one common name, empty when there is none or there are several."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


@cache
def _chain_of_amd(product: SnpProduct) -> tuple[x509.Certificate, x509.Certificate]:
    pem = resources.files("csi.broker.verifiers").joinpath(f"amd/{product}.pem").read_bytes()
    intermediate, root = x509.load_pem_x509_certificates(pem)
    return intermediate, root
