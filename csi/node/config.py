"""The node's configuration file (YAML): text to checked settings. Every error names the place in the file."""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from csi.core.errors import InvalidInput
from csi.core.patterns import UNUSABLE
from csi.node import strict_yaml
from csi.node.lvm import filters
from csi.node.lvm.filters import DeviceFilter
from csi.node.lvm.names import checked_vg_name
from csi.node.quantity import NO_RESERVE, Reserve, reserve

_WHOLE: Final = 100
_MOST_JOBS: Final = 16
"""More would only make a disk seek."""
_ANY_NAME: Final = "a-name_that.nobody+gives"
_UUID = re.compile(r"[A-Za-z0-9]{6}(-[A-Za-z0-9]{4}){5}-[A-Za-z0-9]{6}")


class Strategy(StrEnum):
    """Which volume group of a pool a new volume goes to."""

    BINPACK = "binpack"
    """The fullest one in which it fits."""
    SPREAD = "spread"
    """The one with most room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A named set of volume groups. With `devices` there is exactly one group, made and extended by the driver."""

    name: str
    vgs: tuple[str, ...]
    devices: tuple[str, ...] = ()
    strategy: Strategy = Strategy.SPREAD
    reserve: Reserve = NO_RESERVE


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What the operator lets this node's driver use. Nothing is used that isn't named here."""

    pools: tuple[Pool, ...] = ()
    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()
    default_pool: str | None = None
    udev: bool = False
    loop_devices: bool = False
    """Disks of this node are loop devices. Otherwise LVM sees only loop devices that a pool's `devices` name."""
    lvm_filter: tuple[str, ...] = ()
    """Patterns of devices that LVM must not look at, in LVM's own form."""
    vg_uuids: Mapping[str, str] = field(default_factory=dict)
    """The UUIDs of this node's groups by their names. Where there are any, no other group is used."""
    jobs_per_group: int = 2
    """So many wipes and clearings run at a time in each group."""

    @property
    def device_filter(self) -> DeviceFilter:
        """Which devices LVM may look at. Where every group is made of named disks, it is those and no others."""
        return DeviceFilter(
            loop_devices=self.loop_devices,
            disks=tuple(device for pool in self.pools for device in pool.devices),
            only_disks=bool(self.pools) and all(pool.devices for pool in self.pools) and not self.include,
            rejected=self.lvm_filter,
        )

    def pool(self, name: str) -> Pool | None:
        """The pool of that name."""
        return next((pool for pool in self.pools if pool.name == name), None)

    def pool_of(self, vg: str) -> Pool | None:
        """The pool that a volume group belongs to."""
        return next((pool for pool in self.pools if vg in pool.vgs), None)

    def allows(self, vg: str) -> bool:
        """Whether volumes may be made in this group: it is in a pool, or matches `include` and not `exclude`."""
        if self.pool_of(vg) is not None:
            return True
        included = any(pattern.fullmatch(vg) for pattern in self.include)
        return included and not any(pattern.fullmatch(vg) for pattern in self.exclude)


class _Pool(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    vgs: list[str] = []
    devices: list[str] = []
    strategy: Strategy = Strategy.SPREAD
    reserve: str | int = 0


class _Names(msgspec.Struct, forbid_unknown_fields=True):
    include: list[str] = []
    exclude: list[str] = []


class _ListConfig(msgspec.Struct, forbid_unknown_fields=True):
    vgs: _Names = msgspec.field(default_factory=_Names)


class _File(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    pools: list[_Pool] = []
    list_config: _ListConfig = msgspec.field(default_factory=_ListConfig)
    default_pool: str | None = None
    udev: bool = False
    loop_devices: bool = False
    lvm_filter: list[str] = []
    vg_uuids: dict[str, str] = {}
    jobs_per_group: Annotated[int, msgspec.Meta(ge=1, le=_MOST_JOBS)] = 2


def parse(text: str, source: str) -> NodeConfig:
    """The checked configuration. Raises `InvalidInput` naming `source` and the place in it."""
    try:
        content = strict_yaml.load(text, source)
        raw = msgspec.convert({} if content is None else content, type=_File)
    except msgspec.ValidationError as error:
        raise InvalidInput(source, str(error)) from error
    pools = tuple(_pool(pool, f"{source}: pools[{number}]") for number, pool in enumerate(raw.pools))
    _refuse_overlap(pools, source)
    if raw.default_pool is not None and raw.default_pool not in {pool.name for pool in pools}:
        raise InvalidInput(f"{source}: defaultPool", f"there is no pool {raw.default_pool!r}")
    names = raw.list_config.vgs
    return NodeConfig(
        pools=pools,
        include=_patterns(names.include, f"{source}: listConfig.vgs.include"),
        exclude=_patterns(names.exclude, f"{source}: listConfig.vgs.exclude"),
        default_pool=raw.default_pool or (pools[0].name if len(pools) == 1 else None),
        udev=raw.udev,
        loop_devices=raw.loop_devices,
        lvm_filter=_rejections(raw.lvm_filter, f"{source}: lvmFilter"),
        vg_uuids=_uuids(raw.vg_uuids, f"{source}: vgUuids"),
        jobs_per_group=raw.jobs_per_group,
    )


def _uuids(given: dict[str, str], place: str) -> dict[str, str]:
    for vg, uuid in given.items():
        checked_vg_name(vg, place)
        if _UUID.fullmatch(uuid) is None:
            raise InvalidInput(f"{place}.{vg}", f"{uuid!r} is not the UUID of a volume group; see vgs -o vg_uuid")
    return given


def _pool(raw: _Pool, place: str) -> Pool:
    if not raw.name or raw.name != raw.name.strip() or not raw.name.isprintable():
        raise InvalidInput(
            f"{place}.name", f"{raw.name!r} is empty, begins or ends with a blank, or holds control characters"
        )
    if not raw.vgs and not raw.devices:
        raise InvalidInput(place, f"pool {raw.name!r} names neither vgs nor devices")
    if raw.devices and len(raw.vgs) != 1:
        raise InvalidInput(
            f"{place}.vgs", "must name exactly one volume group when devices are given: the one they form"
        )
    for number, device in enumerate(raw.devices):
        _check_device(device, f"{place}.devices[{number}]")
    kept = reserve(str(raw.reserve), f"{place}.reserve")
    if kept.percent >= _WHOLE:
        raise InvalidInput(f"{place}.reserve", "of 100% leaves no room for any volume; take the pool out instead")
    return Pool(
        name=raw.name,
        vgs=tuple(checked_vg_name(vg, f"{place}.vgs[{number}]") for number, vg in enumerate(raw.vgs)),
        devices=tuple(raw.devices),
        strategy=raw.strategy,
        reserve=kept,
    )


def _check_device(device: str, place: str) -> None:
    if not device.startswith("/dev/") or ".." in device:
        raise InvalidInput(place, f"{device!r} is not an absolute path below /dev")
    if device != device.strip() or not device.isprintable():
        raise InvalidInput(place, f"{device!r} ends with a blank, or holds control characters; take it out")
    if device != posixpath.normpath(device):
        raise InvalidInput(place, f"{device!r} is not written plainly; write {posixpath.normpath(device)}")


def _refuse_overlap(pools: tuple[Pool, ...], source: str) -> None:
    seen: dict[str, str] = {}
    for pool in pools:
        if sum(other.name == pool.name for other in pools) > 1:
            raise InvalidInput(f"{source}: pools", f"two pools are called {pool.name!r}")
        named = [(f"group {vg!r}", vg) for vg in pool.vgs] + [(f"disk {disk!r}", disk) for disk in pool.devices]
        for shown, name in named:
            if name in seen:
                where = f"in both {seen[name]!r} and" if seen[name] != pool.name else "twice in"
                raise InvalidInput(f"{source}: pools", f"{shown} is {where} {pool.name!r}; name it once")
            seen[name] = pool.name


def _rejections(patterns: list[str], place: str) -> tuple[str, ...]:
    for number, pattern in enumerate(patterns):
        try:
            rejects = filters.is_rejecting(pattern)
        except UNUSABLE as error:
            raise InvalidInput(f"{place}[{number}]", f"{pattern!r} is not a regular expression: {error}") from error
        if not rejects:
            raise InvalidInput(
                f"{place}[{number}]",
                f"{pattern!r} does not reject anything; write r|REGEX|, e.g. r|^/dev/disk/by-path/.*-iscsi-|. A pattern "
                "that accepts would bring back what another one rejects, as LVM takes a disk by any of its names",
            )
    return tuple(patterns)


def _patterns(texts: list[str], place: str) -> tuple[re.Pattern[str], ...]:
    patterns = []
    for number, text in enumerate(texts):
        try:
            pattern = re.compile(text)
        except UNUSABLE as error:
            raise InvalidInput(f"{place}[{number}]", f"{text!r} is not a regular expression: {error}") from error
        if pattern.fullmatch("") and not pattern.fullmatch(_ANY_NAME):
            raise InvalidInput(
                f"{place}[{number}]", f"{text!r} matches the empty name; a | or ? is too many, or a part is missing"
            )
        if text != text.strip():
            raise InvalidInput(
                f"{place}[{number}]", f"{text!r} begins or ends with a blank, which no group's name does"
            )
        patterns.append(pattern)
    return tuple(patterns)
