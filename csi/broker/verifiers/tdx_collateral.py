"""What Intel says about a kind of TDX platform, in the JSON that `dcap-qvl` reads: TCB info, QE identity, revocation lists.

It is given by an operator, never fetched, and verified when it is read: each part is signed, up to Intel's root.
"""

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Self, TypeAlias

import msgspec
from cryptography import x509

from csi.broker.verifiers.intel_chain import INTEL, IntelRoot, check_crl, check_pem_chain, check_signed
from csi.core.errors import InvalidInput
from csi.kbs import strict_json

LIMIT_BYTES: Final = 1024 * 1024
_FIELD: Final = "collateral"
_CAS: Final = {"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}


class _Parts(msgspec.Struct, frozen=True, kw_only=True):
    """The nine members; a chain of a single platform's certificates, which a file may have beside them, is left out."""

    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str


_Moment: TypeAlias = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class _Dated(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    id: str
    issue_date: _Moment
    next_update: _Moment
    fmspc: str = ""
    tcb_evaluation_data_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Age:
    """How new one part is.

    `number` is the TCB evaluation's, because Intel issues those of lower numbers anew each day. Intel's revocation lists
    all have the number 1, which tells nothing.
    """

    issued: dt.datetime
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxCollateral:
    """Collateral whose signatures hold, for platforms with this FMSPC below this certificate authority."""

    fmspc: str
    ca: str
    evaluation: int
    ages: Mapping[str, Age]
    """By part, called as a person would. Each counts for itself: newer TCB info makes up for no older revocation list."""
    expires: dt.datetime
    json: str

    @classmethod
    def parse(cls, text: str, root: IntelRoot = INTEL) -> Self:
        """Read and verify it; raises `InvalidInput`. Whether it has expired is not asked here."""
        if len(text) > LIMIT_BYTES:
            raise InvalidInput(_FIELD, f"more than {LIMIT_BYTES} bytes")
        parts = strict_json.decode(text, _Parts, _FIELD)
        info_chain = check_pem_chain(parts.tcb_info_issuer_chain, 2, f"{_FIELD}.tcb_info_issuer_chain", root)
        identity_chain = check_pem_chain(parts.qe_identity_issuer_chain, 2, f"{_FIELD}.qe_identity_issuer_chain", root)
        pck_chain = check_pem_chain(parts.pck_crl_issuer_chain, 2, f"{_FIELD}.pck_crl_issuer_chain", root)
        info = _signed(parts.tcb_info, parts.tcb_info_signature, info_chain[0], "tcb_info")
        identity = _signed(parts.qe_identity, parts.qe_identity_signature, identity_chain[0], "qe_identity")
        if (info.id, identity.id) != ("TDX", "TD_QE"):
            raise InvalidInput(_FIELD, f"of {info.id} and {identity.id}, not of TDX and TD_QE")
        pck_crl = check_crl(_octets(parts.pck_crl, "pck_crl"), pck_chain[0], f"{_FIELD}.pck_crl")
        root_crl = check_crl(_octets(parts.root_ca_crl, "root_ca_crl"), pck_chain[1], f"{_FIELD}.root_ca_crl")
        ends = [info.next_update, identity.next_update, *(_next_update(crl) for crl in (pck_crl, root_crl))]
        ends += [one.not_valid_after_utc for one in (*info_chain, *identity_chain, *pck_chain)]
        return cls(
            fmspc=info.fmspc.upper(),
            ca=_ca(pck_chain[0]),
            evaluation=min(info.tcb_evaluation_data_number, identity.tcb_evaluation_data_number),
            ages={
                "TCB info": _age(info),
                "QE identity": _age(identity),
                "PCK revocation list": Age(issued=pck_crl.last_update_utc),
                "root revocation list": Age(issued=root_crl.last_update_utc),
            },
            expires=min(ends),
            json=msgspec.json.encode(parts).decode(),
        )

    def going_back(self, present: Self) -> Iterator[str]:
        """What would get older if this took the place of `present`, in words."""
        for part, new in self.ages.items():
            old = present.ages[part]
            if new.issued < old.issued:
                times = (f"{one.issued:%Y-%m-%d %H:%M} UTC" for one in (new, old))
                yield f"its {part} is of {', the present one of '.join(times)}"
            elif new.number < old.number:
                yield f"its {part} has TCB evaluation {new.number}, the present one {old.number}"


def _signed(text: str, signature: str, signer: x509.Certificate, name: str) -> _Dated:
    check_signed(text.encode(), _octets(signature, f"{name}_signature"), signer, f"{_FIELD}.{name}")
    return strict_json.decode(text, _Dated, f"{_FIELD}.{name}")


def _octets(text: str, name: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError as error:
        raise InvalidInput(f"{_FIELD}.{name}", "not hex digits") from error
    if found.hex() != text:
        raise InvalidInput(f"{_FIELD}.{name}", "not lower-case hex digits alone")
    return found


def _age(part: _Dated) -> Age:
    return Age(issued=part.issue_date, number=part.tcb_evaluation_data_number)


def _next_update(crl: x509.CertificateRevocationList) -> dt.datetime:
    if crl.next_update_utc is None:
        raise InvalidInput(_FIELD, "a revocation list without an end")
    return crl.next_update_utc


def _ca(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)
    ca = _CAS.get(str(names[0].value)) if len(names) == 1 else None
    if ca is None:
        raise InvalidInput(f"{_FIELD}.pck_crl_issuer_chain", "not the PCK Platform CA or Processor CA of Intel")
    return ca
