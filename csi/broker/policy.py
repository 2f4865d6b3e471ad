"""The broker's policy file (TOML) to `ReleasePolicy`. Unknown keys, missing lists and bad patterns are errors."""

import re
import tomllib
from typing import Annotated

import msgspec

from csi.broker import appraise, images
from csi.broker.claims import SnpProduct, SnpTcb, TcbStatus
from csi.broker.release import ANY, Allocate, Image, ReleasePolicy, SnpFloor, TdxFloor, Workload
from csi.core.errors import InvalidInput
from csi.core.patterns import UNUSABLE
from csi.kbs import strict_json
from csi.kbs.messages import Tee
from csi.kbs.register import LeaseSeconds

_VERSION = 1
_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})", re.ASCII)
_ADVISORY = re.compile(r"INTEL-SA-[0-9]{5}", re.ASCII)
_NONE = "none"
_HARDWARE = (Tee.TDX, Tee.SNP)


class _Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allow: bool = False


class _Tdx(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tcb_status: Annotated[tuple[TcbStatus, ...], msgspec.Meta(min_length=1)] = (TcbStatus.UP_TO_DATE,)
    denied_advisories: list[str] = []
    minimum_tcb_evaluation: Annotated[int, msgspec.Meta(ge=0)] = 0


_Svn = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _SnpTcb(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    fmc: _Svn | None = None
    bootloader: _Svn
    tee: _Svn
    snp: _Svn
    microcode: _Svn


class _Snp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    minimum_tcb: dict[SnpProduct, _SnpTcb] = {}
    committed: bool = False


class _Tee(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sample: _Sample = _Sample()
    tdx: _Tdx = _Tdx()
    snp: _Snp = _Snp()


class _Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    tee: Annotated[list[str], msgspec.Meta(min_length=1)]
    init_data: Annotated[list[str], msgspec.Meta(min_length=1)]
    images: list[str] = []
    launch_digests: list[str] = []
    volumes: list[str] = []
    resources: list[str] = []
    debug: bool = False


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    allocate: Allocate = Allocate.FIRST_USE
    format_deadline_seconds: Annotated[int, msgspec.Meta(ge=60, le=7 * 24 * 3600)] = 3600
    lease_seconds: LeaseSeconds = 60
    tee: _Tee = _Tee()
    image: list[images.TdxTable | images.SnpTable] = []
    workload: list[_Workload] = []


def parse(text: str) -> ReleasePolicy:
    """Read the text of a policy file; raises `InvalidInput` naming the field."""
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # Beside TOMLDecodeError: a number of too many digits.
        raise InvalidInput("policy", f"not TOML: {error}") from error
    except RecursionError as error:
        raise InvalidInput("policy", "nested too deeply") from error
    file = strict_json.convert(document, _File, "policy")
    if file.version != _VERSION:
        # Not which: a number of 5,000 hexadecimal digits can't be written as a decimal one.
        raise InvalidInput("policy.version", f"is not known; this broker reads version {_VERSION}")
    reference = _images(file)
    _no_name_twice(file)
    return ReleasePolicy(
        allow_sample=file.tee.sample.allow,
        tdx=_tdx(file.tee.tdx),
        snp=_snp(file.tee.snp),
        images=reference,
        allocate=file.allocate,
        format_deadline_seconds=file.format_deadline_seconds,
        lease_seconds=file.lease_seconds,
        workloads=tuple(
            _workload(item, reference, f"policy.workload[{index}]") for index, item in enumerate(file.workload)
        ),
    )


def _tdx(table: _Tdx) -> TdxFloor:
    for advisory in table.denied_advisories:
        if not _ADVISORY.fullmatch(advisory):
            raise InvalidInput("policy.tee.tdx.denied_advisories", f"{advisory!r} is not like INTEL-SA-00837")
    return TdxFloor(
        tcb_status=table.tcb_status,
        denied_advisories=tuple(table.denied_advisories),
        minimum_tcb_evaluation=table.minimum_tcb_evaluation,
    )


def _snp(table: _Snp) -> SnpFloor:
    floors = {product: _snp_floor(product, tcb) for product, tcb in table.minimum_tcb.items()}
    return SnpFloor(minimum_tcb=floors, committed=table.committed)


def _snp_floor(product: SnpProduct, tcb: _SnpTcb) -> SnpTcb:
    field = f"policy.tee.snp.minimum_tcb.{product}.fmc"
    if product is SnpProduct.TURIN and tcb.fmc is None:
        raise InvalidInput(
            field, "missing: a floor says something of each part that a product has; 0 lets every one in"
        )
    if product is not SnpProduct.TURIN and tcb.fmc:
        raise InvalidInput(field, f"{tcb.fmc}, and only Turin has that part: no {product} would be let in")
    return SnpTcb(fmc=tcb.fmc or 0, bootloader=tcb.bootloader, tee=tcb.tee, snp=tcb.snp, microcode=tcb.microcode)


def _images(file: _File) -> tuple[Image, ...]:
    found: dict[str, Image] = {}
    for index, table in enumerate(file.image):
        field = f"policy.image[{index}]"
        image = images.image(table, field)
        if image.name in found:
            raise InvalidInput(f"{field}.name", f"there are two images {image.name!r}")
        found[image.name] = image
    return tuple(found.values())


def _no_name_twice(file: _File) -> None:
    """A volume belongs to a workload by its name."""
    names = [item.name for item in file.workload]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidInput(f"policy.workload[{index}].name", f"there are two workloads {name!r}")


def _workload(item: _Workload, reference: tuple[Image, ...], field: str) -> Workload:
    for name in item.tee:
        _one_of(name, (*Tee, ANY), f"{field}.tee")
    _check_measured(item, reference, field)
    for digest in item.init_data:
        if digest not in (ANY, _NONE) and not _DIGEST.fullmatch(digest):
            raise InvalidInput(
                f"{field}.init_data", f"{digest!r} is not sha256:, sha384: or sha512: with its hex digits"
            )
    for pattern in item.volumes:
        _pattern(pattern, f"{field}.volumes")
    for pattern in item.resources:
        _pattern(pattern, f"{field}.resources")
        if not pattern.startswith("regex:") and pattern.count("/") != 2:
            raise InvalidInput(f"{field}.resources", f"{pattern!r} has not three parts REPOSITORY/TYPE/TAG")
    return Workload(
        name=item.name,
        tee=tuple(item.tee),
        images=tuple(item.images),
        launch_digests=tuple(item.launch_digests),
        init_data=tuple(item.init_data),
        volumes=tuple(item.volumes),
        resources=tuple(item.resources),
        debug=item.debug,
    )


def _check_measured(item: _Workload, reference: tuple[Image, ...], field: str) -> None:
    """Each TEE of the list needs something that says what may run: launch digests for `sample`, images for the others."""
    tees = {image.name: image.tee for image in reference}
    unknown = [name for name in item.images if name != ANY and name not in tees]
    if unknown:
        raise InvalidInput(f"{field}.images", f"there is no [[image]] with the name {unknown[0]!r}")
    named = {tees[name] for name in item.images if name != ANY}
    for tee in _HARDWARE:
        if tee in item.tee and tee not in named and ANY not in item.images:
            raise InvalidInput(f"{field}.images", f'none is of {tee}; name an [[image]], or "{ANY}"')
    if Tee.SAMPLE in item.tee and not item.launch_digests:
        raise InvalidInput(f"{field}.launch_digests", 'missing; the sample TEE always says "abcde"')
    if item.launch_digests and not {Tee.SAMPLE, ANY} & set(item.tee):
        raise InvalidInput(f"{field}.launch_digests", "is for the sample TEE alone; TDX and SEV-SNP need images")
    if not item.images and not item.launch_digests:
        raise InvalidInput(f"{field}.images", "missing: nothing says what may run")


def _one_of(name: str, allowed: tuple[str, ...], field: str) -> None:
    if name not in allowed:
        raise InvalidInput(field, f"{name!r} is not one of {', '.join(allowed)}")


def _pattern(pattern: str, field: str) -> None:
    if not pattern:
        raise InvalidInput(field, "an empty pattern covers nothing; leave it out")
    try:
        for part in [pattern] if pattern.startswith("regex:") else pattern.split("/"):
            appraise.compiled(part)
    except UNUSABLE as error:
        raise InvalidInput(field, f"{pattern!r}: {error}") from error
