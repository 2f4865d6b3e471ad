"""Reference sets (`[[image]]`) of the policy file: strict reading of them, and writing one from verified claims."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias, assert_never

import msgspec

from csi.broker.claims import SNP_REGISTERS, TDX_REGISTERS, HardwareClaims, SnpClaims, TdxClaims
from csi.broker.release import ANY, Image, Registers, SnpImage, TdxImage
from csi.core.errors import InvalidInput

UNMEASURED = "whoever starts the guest chooses kernel and command line"
"""What a policy has to say, in these words, to do without RTMR1 or RTMR2."""
TABLES_UNMEASURED = "whoever starts the guest chooses ACPI tables, whose code its kernel runs"
"""The same to do without RTMR0 alone. It is less: who chooses the kernel needs no tables."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_LEARNED_TDX = ("mrtd", "rtmr0", "rtmr1", "rtmr2")
_LEARNED_SNP = ("measurement",)

_Values: TypeAlias = Annotated[list[str], msgspec.Meta(min_length=1)]


class TdxTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="tee", tag="tdx"):
    """An `[[image]]` with `tee = "tdx"`."""

    name: str
    mrtd: _Values | None = None
    rtmr0: _Values | None = None
    rtmr1: _Values | None = None
    rtmr2: _Values | None = None
    rtmr3: _Values | None = None
    mrconfigid: _Values | None = None
    mrowner: _Values | None = None
    mrownerconfig: _Values | None = None
    mrseam: _Values | None = None
    mrsignerseam: _Values | None = None
    xfam: _Values | None = None
    unmeasured: str | None = None


class SnpTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="tee", tag="snp"):
    """An `[[image]]` with `tee = "snp"`."""

    name: str
    measurement: _Values | None = None
    host_data: _Values | None = None
    family_id: _Values | None = None
    image_id: _Values | None = None
    id_key_digest: _Values | None = None
    author_key_digest: _Values | None = None
    vmpl: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=3)], ...], msgspec.Meta(min_length=1)] = (0,)
    minimum_guest_svn: Annotated[int, msgspec.Meta(ge=0)] = 0
    smt: bool = True
    single_socket: bool = False
    migration_agent: bool = False


def image(table: TdxTable | SnpTable, field: str) -> Image:
    """Check one reference set; raises `InvalidInput` naming the entry."""
    _check_name(table.name, f"{field}.name")
    match table:
        case TdxTable():
            registers = _registers(table, TDX_REGISTERS, field)
            return TdxImage(name=table.name, registers=registers, unmeasured=_unmeasured(table, registers, field))
        case SnpTable():
            registers = _registers(table, SNP_REGISTERS, field)
            if "measurement" not in registers:
                raise InvalidInput(f"{field}.measurement", "missing: without it any image may run")
            return SnpImage(
                name=table.name,
                registers=registers,
                vmpl=table.vmpl,
                minimum_guest_svn=table.minimum_guest_svn,
                smt=table.smt,
                single_socket=table.single_socket,
                migration_agent=table.migration_agent,
            )
    assert_never(table)


def learned(claims: HardwareClaims, name: str) -> str:
    """The reference set that these claims meet, as text for the policy file. A person decides whether it is trusted."""
    match claims:
        case TdxClaims():
            names: tuple[str, ...] = _LEARNED_TDX
        case SnpClaims():
            names = _LEARNED_SNP
        case _:
            assert_never(claims)
    text = reference_set(name, claims.tee, {register: [claims.registers[register]] for register in names})
    return text + (f"vmpl = [{claims.vmpl}]\n" if isinstance(claims, SnpClaims) else "")


def reference_set(name: str, tee: str, registers: Mapping[str, Sequence[str]]) -> str:
    """An `[[image]]` as text for the policy file. Raises `InvalidInput` for a name that the policy would not take."""
    _check_name(name, "name")
    lines = ["[[image]]", f'name = "{name}"', f'tee = "{tee}"']
    for register, values in registers.items():
        quoted = ", ".join(f'"{value}"' for value in values)
        lines.append(f"{register} = [{quoted}]")
    return "\n".join(lines) + "\n"


def _check_name(name: str, field: str) -> None:
    if not _NAME.fullmatch(name) or name == ANY:
        raise InvalidInput(field, f"{name!r} is not a name of letters, digits, '.', '_' and '-'; {ANY!r} is taken")


def _registers(table: TdxTable | SnpTable, known: Mapping[str, int], field: str) -> Registers:
    found: dict[str, tuple[str, ...]] = {}
    for name, size in known.items():
        values: list[str] | None = getattr(table, name)
        if values is None:
            continue
        for value in values:
            if not re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", value, re.ASCII):
                raise InvalidInput(f"{field}.{name}", f"{value!r} is not {2 * size} lower-case hex digits")
        found[name] = tuple(values)
    return found


def _unmeasured(table: TdxTable, registers: Registers, field: str) -> str | None:
    """What the policy says in words to leave to whoever starts the guest: nothing, the ACPI tables, or the kernel."""
    if "mrtd" not in registers:
        raise InvalidInput(f"{field}.mrtd", "missing: without it any firmware may run, and measure what it likes")
    missing = [name for name in ("rtmr1", "rtmr2", "rtmr0") if name not in registers]
    if not missing:
        if table.unmeasured is not None:
            raise InvalidInput(f"{field}.unmeasured", "rtmr0, rtmr1 and rtmr2 are given: take this line out")
        return None
    if missing == ["rtmr0"]:
        words, why = (
            TABLES_UNMEASURED,
            "memory map and ACPI tables are in RTMR0, and the kernel runs what code those hold",
        )
    else:
        words, why = UNMEASURED, "MRTD is the firmware alone, kernel and command line are in RTMR1 and RTMR2"
    if table.unmeasured is None:
        raise InvalidInput(
            f"{field}.{missing[0]}", f'missing: {why}; if that doesn\'t matter, say so: unmeasured = "{words}"'
        )
    if table.unmeasured != words:
        raise InvalidInput(f"{field}.unmeasured", f"has to be {words!r}, if that is meant")
    return words
