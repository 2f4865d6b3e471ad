"""The SEV-SNP report as Confidential Containers' attester sends it: one JSON member for each field, put back into bytes.

These are the members of the `sev` crate since its version 6. The signature is over the bytes, so a field that is put back
wrongly can only make a good report fail. Members that this does not know are ignored: they have no place in the bytes.
"""

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from csi.core.errors import InvalidInput

_SIGNATURE_PART_BYTES: Final = 72
_SIGNATURE_BYTES: Final = 512


class _Tcb(msgspec.Struct, frozen=True, kw_only=True):
    fmc: int | None = None
    bootloader: int
    tee: int
    snp: int
    microcode: int

    def octets(self) -> bytes:
        if self.fmc is None:
            return octets([self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode], "tcb")
        return octets([self.fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode], "tcb")


class _Version(msgspec.Struct, frozen=True, kw_only=True):
    major: int
    minor: int
    build: int

    def octets(self) -> bytes:
        return octets([self.build, self.minor, self.major, 0], "version")


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    r: list[int]
    s: list[int]


class UpstreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """Members of `AttestationReport`."""

    version: int
    guest_svn: int
    policy: int
    family_id: list[int]
    image_id: list[int]
    vmpl: int
    sig_algo: int
    current_tcb: _Tcb
    plat_info: int
    key_info: int
    report_data: list[int]
    measurement: list[int]
    host_data: list[int]
    id_key_digest: list[int]
    author_key_digest: list[int]
    report_id: list[int]
    report_id_ma: list[int]
    reported_tcb: _Tcb
    cpuid_fam_id: int | None = None
    cpuid_mod_id: int | None = None
    cpuid_step: int | None = None
    chip_id: list[int]
    committed_tcb: _Tcb
    current: _Version
    committed: _Version
    launch_tcb: _Tcb
    launch_mit_vector: int | None = None
    current_mit_vector: int | None = None
    signature: _Signature


def report_bytes(report: UpstreamReport) -> bytes:
    """The bytes that the firmware signed, with the signature; raises `InvalidInput` for a number that does not fit."""
    cpuid = [report.cpuid_fam_id or 0, report.cpuid_mod_id or 0, report.cpuid_step or 0]
    return b"".join(
        (
            _numbers("<IIQ", report.version, report.guest_svn, report.policy),
            _field(report.family_id, 16, "family_id"),
            _field(report.image_id, 16, "image_id"),
            _numbers("<II", report.vmpl, report.sig_algo),
            report.current_tcb.octets(),
            _numbers("<QII", report.plat_info, report.key_info, 0),
            _field(report.report_data, 64, "report_data"),
            _field(report.measurement, 48, "measurement"),
            _field(report.host_data, 32, "host_data"),
            _field(report.id_key_digest, 48, "id_key_digest"),
            _field(report.author_key_digest, 48, "author_key_digest"),
            _field(report.report_id, 32, "report_id"),
            _field(report.report_id_ma, 32, "report_id_ma"),
            report.reported_tcb.octets(),
            octets(cpuid, "cpuid").ljust(24, b"\0"),
            _field(report.chip_id, 64, "chip_id"),
            report.committed_tcb.octets(),
            report.current.octets(),
            report.committed.octets(),
            report.launch_tcb.octets(),
            _numbers("<QQ", report.launch_mit_vector or 0, report.current_mit_vector or 0),
            bytes(152),
            _field(report.signature.r, _SIGNATURE_PART_BYTES, "signature.r"),
            _field(report.signature.s, _SIGNATURE_PART_BYTES, "signature.s"),
            bytes(_SIGNATURE_BYTES - 2 * _SIGNATURE_PART_BYTES),
        )
    )


def octets(numbers: Sequence[int], name: str) -> bytes:
    """Numbers from 0 to 255 as bytes; raises `InvalidInput`."""
    try:
        return bytes(numbers)
    except ValueError as error:
        raise InvalidInput(name, "a number that is not from 0 to 255") from error


def _field(numbers: Sequence[int], size: int, name: str) -> bytes:
    if len(numbers) != size:
        raise InvalidInput(f"attestation_report.{name}", f"{len(numbers)} numbers, not {size}")
    return octets(numbers, f"attestation_report.{name}")


def _numbers(layout: str, *values: int) -> bytes:
    try:
        return struct.pack(layout, *values)
    except struct.error as error:
        raise InvalidInput("attestation_report", f"a number does not fit: {error}") from error
