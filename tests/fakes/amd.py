"""A SEV-SNP platform that never was: an authority like AMD's, a chip's key below it, and reports signed with it."""

import datetime as dt
import struct
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID, ObjectIdentifier

from csi.broker.claims import SnpKey, SnpProduct, SnpTcb
from csi.broker.verifiers.snp_chain import Roots

NOW = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
OID = "1.3.6.1.4.1.3704.1"
TCB = SnpTcb(bootloader=4, tee=0, snp=22, microcode=213)
CPUS = {SnpProduct.MILAN: (0x19, 0x01), SnpProduct.GENOA: (0x19, 0x11), SnpProduct.TURIN: (0x1A, 0x02)}
GUIDS = {
    SnpKey.VCEK: bytes.fromhex("63da758de6644564adc5f4b93be8accd"),
    SnpKey.VLEK: bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1"),
}
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048) if name else rsa.generate_private_key(65537, 3072)


@cache
def chip_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def certificate(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    signer: rsa.RSAPrivateKey,
    extensions: dict[str, bytes] | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key)
        .serial_number(1)
        .not_valid_before(NOW - dt.timedelta(days=3650))
        .not_valid_after(NOW + dt.timedelta(days=3650))
    )
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(ObjectIdentifier(oid), value), critical=False)
    return builder.sign(signer, hashes.SHA384(), rsa_padding=PSS)


def integer(number: int) -> bytes:
    return bytes((2, 1, number) if number < 0x80 else (2, 2, 0, number))


def tcb_bytes(tcb: SnpTcb, product: SnpProduct) -> bytes:
    if product is SnpProduct.TURIN:
        return bytes((tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode))
    return bytes((tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode))


@dataclass(frozen=True, kw_only=True)
class Platform:
    """One chip. Everything may be told to be wrong."""

    product: SnpProduct = SnpProduct.GENOA
    kind: SnpKey = SnpKey.VCEK
    certified_tcb: SnpTcb = TCB
    chip_id: bytes = b"\x1e\x55\x0a\x8e\xe5\xcf\x9f\x4d"
    subject: str = ""
    extensions: dict[str, bytes] = field(default_factory=dict)

    @property
    def authority(self) -> str:
        return f"SEV-{'VLEK-' if self.kind is SnpKey.VLEK else ''}{self.product.title()}"

    def root(self) -> x509.Certificate:
        root = f"ARK-{self.product.title()}"
        return certificate(root, root, rsa_key(root).public_key(), rsa_key(root))

    def intermediate(self) -> x509.Certificate:
        key = rsa_key(self.authority).public_key()
        return certificate(self.authority, f"ARK-{self.product.title()}", key, rsa_key(f"ARK-{self.product.title()}"))

    def leaf(self) -> x509.Certificate:
        tcb = self.certified_tcb
        extensions = {
            f"{OID}.3.1": integer(tcb.bootloader),
            f"{OID}.3.2": integer(tcb.tee),
            f"{OID}.3.3": integer(tcb.snp),
            f"{OID}.3.8": integer(tcb.microcode),
        }
        if self.product is SnpProduct.TURIN:
            extensions[f"{OID}.3.9"] = integer(tcb.fmc)
        if self.kind is SnpKey.VCEK:
            extensions[f"{OID}.4"] = self.chip_id
        subject = self.subject or f"SEV-{self.kind.upper()}"
        signer = rsa_key(self.authority)
        return certificate(subject, self.authority, chip_key().public_key(), signer, extensions | self.extensions)

    def roots(self) -> Roots:
        return Roots(roots={self.product: self.root()}, intermediates=(self.intermediate(),))

    def report(self, *, version: int = 3, reported_tcb: SnpTcb | None = None, **changes: bytes | int) -> bytes:
        """A signed report; `changes` are made before it is signed, `at_0x90=b"..."` or an integer as 8 bytes."""
        body = bytearray(0x2A0)
        struct.pack_into("<IIQ", body, 0, version, 2, 0x30000)
        struct.pack_into("<II", body, 0x30, 0, 1)
        struct.pack_into("<I", body, 0x48, {SnpKey.VCEK: 0, SnpKey.VLEK: 4}[self.kind])
        tcb = tcb_bytes(reported_tcb or self.certified_tcb, self.product)
        for offset in (0x38, 0x180, 0x1E0, 0x1F0):
            body[offset : offset + 8] = tcb
        body[0x90 : 0x90 + 48] = b"\x56" * 48
        if version >= 3:
            body[0x188:0x18B] = bytes((*CPUS[self.product], 1))
        body[0x1A0 : 0x1A0 + len(self.chip_id)] = self.chip_id
        if version >= 5:
            body[0x1F8:0x208] = b"\x07" * 16
        for where, value in changes.items():
            offset = int(where.removeprefix("at_"), 16)
            data = value if isinstance(value, bytes) else struct.pack("<Q", value)
            body[offset : offset + len(data)] = data
        return bytes(body) + self.signature(bytes(body))

    def crl(self, *serials: int, now: dt.datetime, days: int = 300, signer: str = "") -> bytes:
        """The product's revocation list, in DER."""
        root = f"ARK-{self.product.title()}"
        builder = x509.CertificateRevocationListBuilder().issuer_name(name(root))
        builder = builder.last_update(now).next_update(now + dt.timedelta(days=days))
        for serial in serials:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(one.build())
        signed = builder.sign(rsa_key(signer or root), hashes.SHA384(), rsa_padding=PSS)
        return signed.public_bytes(serialization.Encoding.DER)

    def authorities(self) -> bytes:
        """What a broker is told to trust, in PEM."""
        both = (self.root(), self.intermediate())
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in both)

    def table(self) -> bytes:
        """What the host gives its guests: this chip's certificate, then one that nobody knows."""
        entries = ((GUIDS[self.kind], der(self.leaf())), (bytes(range(16)), b"other"))
        at = 24 * (len(entries) + 1)
        head = content = b""
        for guid, one in entries:
            head += guid + struct.pack("<II", at + len(content), len(one))
            content += one
        return (head + bytes(24) + content).ljust(4096, b"\0")

    def chip(self, **changes: Any) -> dict[str, str | bool]:
        """The platform for `lab.tee`; `changes` as for `report`."""
        private = chip_key().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        body = self.report(**changes)[:0x2A0]
        return {
            "provider": "sev_guest", "body": body.hex(), "key": private.decode(), "after": "",
            "auxblob": self.table().hex(),
        }  # fmt: skip

    def signature(self, body: bytes) -> bytes:
        r, s = decode_dss_signature(chip_key().sign(body, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)


def der(one: x509.Certificate) -> bytes:
    return one.public_bytes(serialization.Encoding.DER)


PEM_OF_NOBODY = certificate("Nobody", "Nobody", rsa_key("Nobody").public_key(), rsa_key("Nobody")).public_bytes(
    serialization.Encoding.PEM
)
