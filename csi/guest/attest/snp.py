"""SEV-SNP: a report for the broker with the host's certificates, and what the report says of the guest's configuration.

The firmware's answer is encrypted for this guest alone, so the guest may believe its own report without a signature; the
certificates come from the host, and only the broker can tell whether they are AMD's.
"""

import os
import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from csi.core.errors import InvalidInput, Refused
from csi.guest.attest import snp_members
from csi.guest.attest.attester import Attester
from csi.guest.attest.tsm import Tsm
from csi.kbs import messages as kbs

PROVIDER: Final = "sev_guest"
_ENTRY: Final = struct.Struct("<16sII")
_FIELD: Final = "the host's certificate table"
_CERTIFICATES: Final = {
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae").bytes: "ARK",
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes: "ASK",
    UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes: "VCEK",
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1").bytes: "VLEK",
}
_DATA_BYTES, _HOST_DATA_BYTES = 64, 32


class _Report(msgspec.Struct, frozen=True):
    report_data: list[int]
    host_data: list[int]


class _Evidence(msgspec.Struct, frozen=True):
    attestation_report: _Report


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpAttester:
    """Reports by configfs-tsm."""

    tsm: Tsm

    @property
    def tee(self) -> str:
        """See `Attester.tee`."""
        return str(kbs.Tee.SNP)

    def evidence(self, report_data: bytes) -> object:
        """See `Attester.evidence`: the members that the attester of Confidential Containers sends."""
        report = self.tsm.report(report_data)
        chain = [{"cert_type": name, "data": list(der)} for name, der in certificates(report.auxiliary)]
        return {"attestation_report": snp_members.of_report(report.evidence), "cert_chain": chain or None}


def configuration(attester: Attester) -> bytes:
    """HOSTDATA, 32 bytes, from a report over random data. Raises what making evidence raises, `Refused` for another's."""
    asked = os.urandom(_DATA_BYTES)
    try:
        report = msgspec.convert(attester.evidence(asked), _Evidence).attestation_report
        found, host_data = bytes(report.report_data), bytes(report.host_data)
    except (msgspec.ValidationError, ValueError) as error:
        raise Refused(f"the firmware's report can't be read: {error}") from error
    if found != asked or len(host_data) != _HOST_DATA_BYTES:
        raise Refused("what the firmware answers is not the report that was asked for")
    return host_data


def certificates(table: bytes) -> list[tuple[str, bytes]]:
    """AMD's certificates in a table as the GHCB specification lays it out; other entries are left out.

    Raises `InvalidInput` for an entry that points out of the table.
    """
    found: list[tuple[str, bytes]] = []
    for at in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        name, offset, length = _ENTRY.unpack_from(table, at)
        if name == bytes(16):
            return found
        if offset + length > len(table):
            raise InvalidInput(_FIELD, f"an entry of {length} bytes at {offset} in a table of {len(table)}")
        if name in _CERTIFICATES:
            found.append((_CERTIFICATES[name], table[offset : offset + length]))
    if table:
        raise InvalidInput(_FIELD, "has no end")
    return found
