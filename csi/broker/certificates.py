"""The broker's own small authority: makes the certificates that `broker init` writes. An existing PKI may replace it.

Elliptic curve P-256 throughout. Nothing here reads or writes files.
"""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from csi.core.errors import InvalidInput
from csi.kbs.signed_answers import SIGNER_NAME

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 825
_SIGNER_DAYS = 825
_CLOCK_SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        """The certificate as text."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """The private key as text, not encrypted: it goes into a file of mode 0600."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def authority(now: dt.datetime) -> Pair:
    """A new certificate authority, which can sign end certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("sealed-local broker CA")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key, now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return Pair(certificate=builder.sign(key, hashes.SHA256()), key=key)


def server(issuer: Pair, hosts: Sequence[str], now: dt.datetime) -> Pair:
    """A TLS server's certificate for host names and IP addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _end(_name("sealed-local broker"), issuer, key, now, _SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return Pair(certificate=builder.sign(issuer.key, hashes.SHA256()), key=key)


def token_signer(issuer: Pair, now: dt.datetime) -> Pair:
    """The certificate of the key that signs attestation tokens."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _end(_name(SIGNER_NAME), issuer, key, now, _SIGNER_DAYS)
    return Pair(certificate=builder.sign(issuer.key, hashes.SHA256()), key=key)


def parse(certificate_pem: bytes, key_pem: bytes, field: str) -> Pair:
    """Read a pair; raises `InvalidInput` when it is damaged or does not belong together."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError):
        # The cause is left out: texts of key parsers may quote what they read.
        raise InvalidInput(field, "not a certificate with its unencrypted private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput(field, "not a P-256 key")
    if certificate.public_key() != key.public_key():
        raise InvalidInput(field, "the certificate belongs to another key")
    return Pair(certificate=certificate, key=key)


def covered_hosts(certificate: x509.Certificate) -> set[str]:
    """The names and addresses that a server's certificate is good for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return set(names.get_values_for_type(x509.DNSName)) | {
        str(address) for address in names.get_values_for_type(x509.IPAddress)
    }


def _end(
    subject: x509.Name, issuer: Pair, key: ec.EllipticCurvePrivateKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    issuer_key = issuer.key.public_key()
    return (
        _builder(subject, issuer.certificate.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise InvalidInput("--host", f"{host!r} is neither a host name nor an IP address") from error


def _usage(**on: bool) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: on.get(name, False) for name in every})
