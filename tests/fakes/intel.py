"""A TDX platform that never was: an authority like Intel's, collateral signed by it, and quotes of version 4.

What only Intel can make up is taken from a real quote and its collateral: the platform's extension in the certificate, the
quoting enclave's report, TCB info and QE identity. All signatures are the test's.
"""

import datetime as dt
import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ObjectIdentifier

from csi.broker.verifiers.intel_chain import IntelRoot
from csi.broker.verifiers.tdx_collateral import TdxCollateral

DATA = Path(__file__).parents[1] / "data" / "attestation"
QUOTE = (DATA / "tdx-v4.bin").read_bytes()
COLLATERAL: dict[str, str] = json.loads((DATA / "tdx-v4-collateral.json").read_text())
NOW = dt.datetime(2025, 6, 20, tzinfo=dt.UTC)
_AUTHENTICATION_AT = 636
_QE_REPORT_AT = _AUTHENTICATION_AT + 134
_QE_DATA_AT = _QE_REPORT_AT + 450
_SGX_EXTENSION = ObjectIdentifier("1.2.840.113741.1.13.1")
FIELDS = {"tee_tcb_svn": 0, "mrtd": 136, "mrconfigid": 184, "rtmr0": 328, "rtmr1": 376, "rtmr2": 424, "rtmr3": 472,
          "report_data": 520, "attributes": 120}  # fmt: skip


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def real_chain(text: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(text.encode())


@cache
def real_pck() -> tuple[x509.Certificate, ...]:
    return tuple(real_chain(QUOTE[QUOTE.index(b"-----BEGIN") : QUOTE.rindex(b"-----END") + 26].decode()))


def like(real: x509.Certificate, name: str, signer: str) -> x509.Certificate:
    """A certificate with another key, of the same names and extensions, signed by another key."""
    builder = x509.CertificateBuilder().subject_name(real.subject).issuer_name(real.issuer)
    builder = builder.public_key(key(name).public_key()).serial_number(real.serial_number >> 8)
    builder = builder.not_valid_before(real.not_valid_before_utc).not_valid_after(real.not_valid_after_utc)
    for extension in real.extensions:
        if extension.oid.dotted_string not in ("2.5.29.35", "2.5.29.14"):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key(name).public_key()), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key(signer).public_key())
    return builder.add_extension(authority, critical=False).sign(key(signer), hashes.SHA256())


@cache
def root() -> x509.Certificate:
    return like(real_pck()[2], "root", "root")


def intel_root() -> IntelRoot:
    return IntelRoot(
        sha256=root().fingerprint(hashes.SHA256()).hex(), der=root().public_bytes(serialization.Encoding.DER)
    )


def pem(*certificates: x509.Certificate) -> str:
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in certificates)


def raw_signature(name: str, content: bytes) -> bytes:
    r, s = decode_dss_signature(key(name).sign(content, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def crl(real: str, signer: str, now: dt.datetime | None = None, revoked: Sequence[x509.Certificate] = ()) -> str:
    found = x509.load_der_x509_crl(bytes.fromhex(real))
    assert found.next_update_utc is not None
    begins, ends = (found.last_update_utc, found.next_update_utc) if now is None else period(now)
    builder = x509.CertificateRevocationListBuilder().issuer_name(found.issuer)
    builder = builder.last_update(begins).next_update(ends)
    builder = builder.add_extension(x509.CRLNumber(1), critical=False)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(begins)
        builder = builder.add_revoked_certificate(entry.build())
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key(signer).public_key())
    signed = builder.add_extension(authority, critical=False).sign(key(signer), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER).hex()


def period(now: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """Thirty days, as Intel gives."""
    return now - dt.timedelta(days=1), now + dt.timedelta(days=29)


def dated(text: str, now: dt.datetime | None, status: str, evaluation: int | None = None) -> str:
    """TCB info or QE identity as Intel would say it at another time, or of a platform in another state."""
    content = json.loads(text)
    if now is not None:
        content["issueDate"], content["nextUpdate"] = (f"{one:%Y-%m-%dT%H:%M:%SZ}" for one in period(now))
    if evaluation is not None:
        content["tcbEvaluationDataNumber"] = evaluation
    if content["id"] == "TDX":
        content["tcbLevels"][0]["tcbStatus"] = status
    return json.dumps(content, separators=(",", ":"))


def collateral_json(*, now: dt.datetime | None = None, status: str = "UpToDate") -> str:
    """What an operator would import for these platforms."""
    signing = like(real_chain(COLLATERAL["tcb_info_issuer_chain"])[0], "tcb", "root")
    pck_ca = like(real_pck()[1], "ca", "root")
    info, identity = (dated(COLLATERAL[name], now, status) for name in ("tcb_info", "qe_identity"))
    parts = {
        "pck_crl_issuer_chain": pem(pck_ca, root()),
        "root_ca_crl": crl(COLLATERAL["root_ca_crl"], "root", now),
        "pck_crl": crl(COLLATERAL["pck_crl"], "ca", now),
        "tcb_info_issuer_chain": pem(signing, root()),
        "tcb_info": info,
        "tcb_info_signature": raw_signature("tcb", info.encode()).hex(),
        "qe_identity_issuer_chain": pem(signing, root()),
        "qe_identity": identity,
        "qe_identity_signature": raw_signature("tcb", identity.encode()).hex(),
    }
    return json.dumps(parts)


def changed(parts: dict[str, str], part: str, now: dt.datetime, evaluation: int | None = None) -> dict[str, str]:
    """Collateral with one part of another time: TCB info, QE identity, or a list that revokes nothing."""
    if part.endswith("_crl"):
        return parts | {part: crl(COLLATERAL[part], "ca" if part == "pck_crl" else "root", now)}
    text = dated(COLLATERAL[part], now, "UpToDate", evaluation)
    return parts | {part: text, f"{part}_signature": raw_signature("tcb", text.encode()).hex()}


def collateral() -> TdxCollateral:
    return TdxCollateral.parse(collateral_json(), intel_root())


@dataclass(frozen=True)
class TestCollateral:
    """Where a verifier finds it."""

    __test__ = False
    found: TdxCollateral

    def tdx(self, fmspc: str, ca: str) -> TdxCollateral | None:
        return self.found if (fmspc, ca) == (self.found.fmspc, self.found.ca) else None


def quote(**changes: bytes) -> bytes:
    """A signed quote; `changes` are registers of the TD."""
    signed, after = td_report(**changes), certification()
    authentication = raw_signature("attestation", signed) + after
    return signed + struct.pack("<I", len(authentication)) + authentication


def quote_of_two_tcbs(launch: int, current: int, **changes: bytes) -> bytes:
    """A signed quote of version 5 that tells both; the numbers are those that `with_two_levels` compares."""
    first, second = (bytes([6, 1, number]).ljust(16, b"\0") for number in (launch, current))
    report = td_report(tee_tcb_svn=first, **changes)
    header, body = b"\x05\0" + report[2:48], report[48:] + second + bytes(48)
    signed = header + struct.pack("<HI", 3, len(body)) + body
    authentication = raw_signature("attestation", signed) + certification()
    return signed + struct.pack("<I", len(authentication)) + authentication


def with_two_levels(parts: dict[str, str], *, newer: tuple[int, str], older: tuple[int, str]) -> dict[str, str]:
    """Collateral with these two TCB levels: the number that a TD needs for each, and its status."""
    content = json.loads(parts["tcb_info"])
    for level, (number, status) in zip(content["tcbLevels"], (newer, older), strict=False):
        level["tcb"]["tdxtcbcomponents"][2]["svn"] = number
        level |= {"tcbStatus": status, "advisoryIDs": [f"INTEL-SA-{number:05}"]}
    text = json.dumps(content, separators=(",", ":"))
    return parts | {"tcb_info": text, "tcb_info_signature": raw_signature("tcb", text.encode()).hex()}


def td_report(**changes: bytes) -> bytes:
    """What is signed of a quote."""
    signed = bytearray(QUOTE[:632])
    for name, value in changes.items():
        at = 48 + FIELDS[name]
        signed[at : at + len(value)] = value
    return bytes(signed)


@cache
def certification() -> bytes:
    """What stands after the signature: the attestation key, and who vouches for it."""
    numbers = key("attestation").public_key().public_numbers()
    attestation_key = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    qe_data = QUOTE[_QE_DATA_AT : _QE_DATA_AT + 32]
    report = bytearray(QUOTE[_QE_REPORT_AT : _QE_REPORT_AT + 384])
    report[320:384] = hashlib.sha256(attestation_key + qe_data).digest() + bytes(32)
    chain = pem(like(real_pck()[0], "pck", "ca"), like(real_pck()[1], "ca", "root"), root()).encode() + b"\0"
    nested = bytes(report) + raw_signature("pck", bytes(report)) + struct.pack("<H", len(qe_data)) + qe_data
    nested += struct.pack("<HI", 5, len(chain)) + chain
    return attestation_key + struct.pack("<HI", 6, len(nested)) + nested


def chip(**changes: bytes) -> dict[str, str | bool]:
    """The platform for `lab.tee`; `changes` are registers of the TD."""
    private = key("attestation").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "provider": "tdx_guest", "body": td_report(**changes).hex(), "key": private.decode(),
        "after": certification().hex(), "auxblob": "",
    }  # fmt: skip
