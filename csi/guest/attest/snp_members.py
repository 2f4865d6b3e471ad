"""A SEV-SNP report as JSON: the members that Confidential Containers' attester sends, those of the `sev` crate from 6 on.

Trustee reads no other form. What is in no member is zero in every report that a verifier takes.
"""

import struct
from typing import Any, Final

from csi.core.errors import Refused

REPORT_BYTES: Final = 1184
_NUMBERS: Final = {
    "version": ("<I", 0x00), "guest_svn": ("<I", 0x04), "policy": ("<Q", 0x08), "vmpl": ("<I", 0x30),
    "sig_algo": ("<I", 0x34), "plat_info": ("<Q", 0x40), "key_info": ("<I", 0x48),
}  # fmt: skip
_LISTS: Final = {
    "family_id": (0x10, 16), "image_id": (0x20, 16), "report_data": (0x50, 64), "measurement": (0x90, 48),
    "host_data": (0xC0, 32), "id_key_digest": (0xE0, 48), "author_key_digest": (0x110, 48), "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32), "chip_id": (0x1A0, 64),
}  # fmt: skip
_TCBS: Final = {"current_tcb": 0x38, "reported_tcb": 0x180, "committed_tcb": 0x1E0, "launch_tcb": 0x1F0}
_VERSIONS: Final = {"current": 0x1E8, "committed": 0x1EC}
_CPU: Final = {"cpuid_fam_id": 0x188, "cpuid_mod_id": 0x189, "cpuid_step": 0x18A}
_MITIGATIONS: Final = {"launch_mit_vector": 0x1F8, "current_mit_vector": 0x200}
_R, _S, _PART_BYTES = 0x2A0, 0x2E8, 72
_FIRST_WITH_CPUID, _FIRST_WITH_MITIGATIONS, _TURIN = 3, 5, 0x1A


def of_report(report: bytes) -> dict[str, Any]:
    """The members of one report; raises `Refused` for bytes that are none."""
    if len(report) != REPORT_BYTES:
        raise Refused(f"the firmware's report has {len(report)} bytes, not {REPORT_BYTES}")
    members: dict[str, Any] = {name: _number(report, form, at) for name, (form, at) in _NUMBERS.items()}
    members |= {name: list(report[at : at + size]) for name, (at, size) in _LISTS.items()}
    has_cpu, has_mitigations = (members["version"] >= first for first in (_FIRST_WITH_CPUID, _FIRST_WITH_MITIGATIONS))
    members |= {name: report[at] if has_cpu else None for name, at in _CPU.items()}
    turin = members["cpuid_fam_id"] is not None and members["cpuid_fam_id"] >= _TURIN
    members |= {name: _tcb(report[at : at + 8], turin=turin) for name, at in _TCBS.items()}
    members |= {name: _version(report[at : at + 3]) for name, at in _VERSIONS.items()}
    members |= {name: _number(report, "<Q", at) if has_mitigations else None for name, at in _MITIGATIONS.items()}
    parts = {"r": _R, "s": _S}
    return members | {"signature": {name: list(report[at : at + _PART_BYTES]) for name, at in parts.items()}}


def _number(report: bytes, form: str, at: int) -> int:
    return int(struct.unpack_from(form, report, at)[0])


def _tcb(raw: bytes, *, turin: bool) -> dict[str, int | None]:
    """Turin has another layout, with one part more."""
    names = ("fmc", "bootloader", "tee", "snp", "", "", "", "microcode")
    if not turin:
        names = ("bootloader", "tee", "", "", "", "", "snp", "microcode")
    return {"fmc": None} | {name: part for name, part in zip(names, raw, strict=True) if name}


def _version(raw: bytes) -> dict[str, int]:
    build, minor, major = raw
    return {"major": major, "minor": minor, "build": build}
