"""The SEV-SNP attestation report, byte by byte: a strict reader of versions 2 to 5. Nothing is verified here.

AMD document 56860, table "ATTESTATION_REPORT Structure". Reserved bytes have to be zero: what this reader does not know it
does not pass over.
"""

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from csi.broker.claims import SnpKey, SnpPolicy, SnpProduct, SnpTcb
from csi.core.errors import InvalidInput

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0
_VERSIONS: Final = range(2, 6)
_ECDSA_P384_SHA384: Final = 1
_NUMBER_BYTES: Final = 48
_FIELD: Final = "SEV-SNP report"
_LAYOUT: Final = struct.Struct(
    "<"
    "II Q 16s16s"  # version, guest SVN; policy; family id, image id
    "II 8s Q I 4s"  # VMPL, signature algorithm; current TCB; platform; key information; reserved
    "64s 48s 32s 48s 48s 32s 32s"  # report data; measurement; host data; id key, author key; report ids
    "8s 3s 21s 64s 8s"  # reported TCB; CPUID family, model, stepping; reserved; chip id; committed TCB
    "4s 4s 8s 16s 152s"  # current and committed firmware version; launch TCB; mitigations; reserved
    "72s 72s 368s"  # signature: r, s; reserved
)


class _Fields(NamedTuple):
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    algorithm: int
    current_tcb: bytes
    platform: int
    key_information: int
    reserved_key: bytes
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: bytes
    reserved_cpuid: bytes
    chip_id: bytes
    committed_tcb: bytes
    current_version: bytes
    committed_version: bytes
    launch_tcb: bytes
    mitigations: bytes
    reserved_body: bytes
    r: bytes
    s: bytes
    reserved_signature: bytes


# Fields that a version does not have yet are zero in it.
_FIRST_WITH_MITIGATIONS: Final = 5
_FIRST_WITH_CPUID: Final = 3
_KEYS: Final = {0: SnpKey.VCEK, 1: SnpKey.VLEK}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """The fields that anything here looks at. TCB versions stay bytes until the product is known."""

    version: int
    guest_svn: int
    policy: SnpPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    signing_key: SnpKey
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    cpu: tuple[int, int] | None
    chip_id: bytes
    current_tcb: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    signed: bytes
    r: int
    s: int


def parse(raw: bytes) -> SnpReport:
    """Read a report; raises `InvalidInput` naming what is not as AMD's document says."""
    if len(raw) != REPORT_BYTES:
        raise InvalidInput(_FIELD, f"{len(raw)} bytes, not {REPORT_BYTES}")
    fields = _Fields._make(_LAYOUT.unpack(raw))
    _check(fields)
    return SnpReport(
        version=fields.version,
        guest_svn=fields.guest_svn,
        policy=SnpPolicy.parse(fields.policy),
        family_id=fields.family_id,
        image_id=fields.image_id,
        vmpl=fields.vmpl,
        signing_key=_signing_key(fields.key_information),
        report_data=fields.report_data,
        measurement=fields.measurement,
        host_data=fields.host_data,
        id_key_digest=fields.id_key_digest,
        author_key_digest=fields.author_key_digest,
        cpu=(fields.cpuid[0], fields.cpuid[1]) if fields.version >= _FIRST_WITH_CPUID else None,
        chip_id=fields.chip_id,
        current_tcb=fields.current_tcb,
        reported_tcb=fields.reported_tcb,
        committed_tcb=fields.committed_tcb,
        launch_tcb=fields.launch_tcb,
        signed=raw[:SIGNED_BYTES],
        r=int.from_bytes(fields.r, "little"),
        s=int.from_bytes(fields.s, "little"),
    )


def _check(fields: _Fields) -> None:
    if fields.version not in _VERSIONS:
        raise InvalidInput(
            f"{_FIELD}.version", f"{fields.version}; this broker reads {_VERSIONS[0]} to {_VERSIONS[-1]}"
        )
    if fields.algorithm != _ECDSA_P384_SHA384:
        raise InvalidInput(f"{_FIELD}.signature algorithm", f"{fields.algorithm}, not ECDSA P-384 with SHA-384")
    if not fields.policy >> 17 & 1:
        raise InvalidInput(f"{_FIELD}.policy", "bit 17 is not set")
    for name, reserved in (
        ("key information", fields.reserved_key),
        ("CPUID", fields.reserved_cpuid + (fields.cpuid if fields.version < _FIRST_WITH_CPUID else b"")),
        ("firmware version", fields.current_version[3:] + fields.committed_version[3:]),
        ("mitigations", fields.mitigations if fields.version < _FIRST_WITH_MITIGATIONS else b""),
        ("body", fields.reserved_body),
        ("signature", fields.r[_NUMBER_BYTES:] + fields.s[_NUMBER_BYTES:] + fields.reserved_signature),
    ):
        if any(reserved):
            raise InvalidInput(f"{_FIELD}.{name}", "reserved bytes are not zero")


def tcb(raw: bytes, product: SnpProduct) -> SnpTcb:
    """The parts of a TCB version. Turin has another layout than its predecessors. Raises `InvalidInput`."""
    if product is SnpProduct.TURIN:
        fmc, bootloader, tee, snp, *reserved, microcode = raw
    else:
        fmc = 0
        bootloader, tee, *reserved, snp, microcode = raw
    if any(reserved):
        raise InvalidInput(f"{_FIELD}.TCB", f"reserved bytes of {raw.hex()} are not zero for {product}")
    return SnpTcb(fmc=fmc, bootloader=bootloader, tee=tee, snp=snp, microcode=microcode)


def product_of_cpu(cpu: tuple[int, int]) -> SnpProduct:
    """The product line of a CPUID family and model; raises `InvalidInput` for one that has no root key here."""
    match cpu:
        case (0x19, model) if model <= 0x0F:
            return SnpProduct.MILAN
        case (0x19, model) if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
            return SnpProduct.GENOA
        case (0x1A, model) if model <= 0x11:
            return SnpProduct.TURIN
    family, model = cpu
    raise InvalidInput(
        f"{_FIELD}.CPUID", f"family {family:#x} model {model:#x} is of no product that this broker knows"
    )


def _signing_key(information: int) -> SnpKey:
    if information >> 5:
        raise InvalidInput(f"{_FIELD}.key information", "reserved bits are not zero")
    if information & 0b10:
        raise InvalidInput(f"{_FIELD}.key information", "the host has the firmware sign nothing (MASK_CHIP_KEY)")
    number = information >> 2 & 0b111
    if number not in _KEYS:
        raise InvalidInput(f"{_FIELD}.signing key", f"{number} is neither VCEK nor VLEK")
    return _KEYS[number]
