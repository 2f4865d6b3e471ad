"""The broker's policy file (TOML) to `ReleasePolicy`. Unknown keys, missing lists and bad patterns are errors."""

import re
import tomllib
from typing import Annotated

import msgspec

from csi.broker.release import ANY, Allocate, ReleasePolicy, Workload
from csi.core.errors import InvalidInput
from csi.kbs import strict_json
from csi.kbs.messages import Tee

_VERSION = 1
_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})", re.ASCII)
_NONE = "none"


class _Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allow: bool = False


class _Tee(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sample: _Sample = _Sample()


class _Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    tee: Annotated[list[str], msgspec.Meta(min_length=1)]
    launch_digests: Annotated[list[str], msgspec.Meta(min_length=1)]
    init_data: Annotated[list[str], msgspec.Meta(min_length=1)]
    volumes: list[str] = []
    resources: list[str] = []
    debug: bool = False


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    allocate: Allocate = Allocate.FIRST_USE
    format_deadline_seconds: Annotated[int, msgspec.Meta(ge=60, le=7 * 24 * 3600)] = 3600
    tee: _Tee = _Tee()
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
        raise InvalidInput("policy.version", f"{file.version} is not known; this broker reads version {_VERSION}")
    return ReleasePolicy(
        allow_sample=file.tee.sample.allow,
        allocate=file.allocate,
        format_deadline_seconds=file.format_deadline_seconds,
        workloads=tuple(_workload(item, f"policy.workload[{index}]") for index, item in enumerate(file.workload)),
    )


def _workload(item: _Workload, field: str) -> Workload:
    for name in item.tee:
        _one_of(name, (*Tee, ANY), f"{field}.tee")
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
        launch_digests=tuple(item.launch_digests),
        init_data=tuple(item.init_data),
        volumes=tuple(item.volumes),
        resources=tuple(item.resources),
        debug=item.debug,
    )


def _one_of(name: str, allowed: tuple[str, ...], field: str) -> None:
    if name not in allowed:
        raise InvalidInput(field, f"{name!r} is not one of {', '.join(allowed)}")


def _pattern(pattern: str, field: str) -> None:
    if not pattern:
        raise InvalidInput(field, "an empty pattern covers nothing; leave it out")
    if pattern.startswith("regex:"):
        try:
            re.compile(pattern.removeprefix("regex:"))
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidInput(field, f"{pattern!r}: {error}") from error
