"""Where a new LV goes: which volume group, which disks, how many extents. Pure arithmetic over one LVM report.

Never looks at anything but the report and the node's configuration, and counts in extents, as LVM does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from csi.core.errors import NoSpace
from csi.core.sealed import device_bytes, usable_bytes
from csi.core.size import human
from csi.node.config import NodeConfig, Strategy
from csi.node.lvm import layout
from csi.node.lvm.layout import LINEAR, Layout, Linear, Striped
from csi.node.lvm.model import PhysicalVolume, Report, VolumeGroup
from csi.node.volume import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A place for an LV. `pvs` is empty when LVM may choose the disks itself."""

    vg: VolumeGroup
    extents: int
    layout: Layout = LINEAR
    """With the number of stripes, where there are any."""
    pvs: tuple[str, ...] = ()


def place(config: NodeConfig, report: Report, parameters: Parameters, size_bytes: int) -> Placement:
    """The place for a volume whose usable size is `size_bytes`.

    Raises `NoSpace` saying what was looked at: it is the answer that makes the scheduler try another node.
    """
    groups = candidates(config, report, parameters)
    fits = [(vg, found) for vg in groups if (found := _fit(config, vg, parameters, size_bytes)) is not None]
    if not fits:
        rooms = ", ".join(_room(config, vg, parameters) for vg in groups)
        needed = human(device_bytes(size_bytes, parameters.profile))
        raise NoSpace(
            f"no volume group can take {needed} ({layout.name(parameters.layout)}): {rooms}. {_way_out(parameters)}"
        )
    spread = _strategy(config, parameters, groups) is Strategy.SPREAD
    fits.sort(key=lambda fit: (-fit[0].free_bytes if spread else fit[0].free_bytes, fit[0].name))
    return fits[0][1]


def candidates(config: NodeConfig, report: Report, parameters: Parameters) -> list[VolumeGroup]:
    """The volume groups that a volume with these parameters may go to. Raises `NoSpace` when this node has none."""
    names = _wanted_names(config, report, parameters)
    unreadable = {group.name: group for group in report.unreadable}
    usable = [name for name in names if name not in report.ambiguous and name not in unreadable]
    groups = [vg for name in usable if (vg := report.vg(name)) is not None]
    twins = [report.why_ambiguous(name) for name in names if name in report.ambiguous]
    blocked = [
        f"volume group {name} can't be looked into: {unreadable[name].why}" for name in names if name in unreadable
    ]
    if (twins or blocked) and not groups:
        raise NoSpace(". ".join((*twins, *blocked)))
    if not groups:
        here = ", ".join(sorted({vg.name for vg in report.vgs if config.allows(vg.name)})) or "none"
        raise NoSpace(
            f"this node has no volume group {' or '.join(names) or 'that its configuration allows'}; usable here: {here}. "
            "Create the group, correct the StorageClass, or let the scheduler use another node."
        )
    return groups


def largest(config: NodeConfig, vg: VolumeGroup, parameters: Parameters) -> int:
    """The largest usable size in bytes of a volume with these parameters in this group; 0 when none fits."""
    budget = _free_extents(config, vg)
    match parameters.layout:
        case Linear():
            room = budget
        case Striped() as striped:
            room = max((_striped_room(vg, count, budget) for count in _stripe_counts(vg, striped)), default=0)
        case _:
            assert_never(parameters.layout)
    return usable_bytes(room * vg.extent_bytes, parameters.profile)


def available(config: NodeConfig, vg: VolumeGroup) -> int:
    """Free bytes of the group that new volumes may take, the reserve kept back."""
    return _free_extents(config, vg) * vg.extent_bytes


def all_room(config: NodeConfig, report: Report) -> int:
    """Free bytes of all groups that the driver may use here."""
    return sum(available(config, vg) for vg in report.vgs if config.allows(vg.name))


def _wanted_names(config: NodeConfig, report: Report, parameters: Parameters) -> list[str]:
    if parameters.vg_name is not None:
        known = parameters.vg_name in {vg.name for vg in report.vgs} | {vg.name for vg in report.foreign}
        if known and not config.allows(parameters.vg_name):
            raise NoSpace(
                f"this node's configuration doesn't let the driver use volume group {parameters.vg_name}; "
                "add it to a pool or to listConfig.vgs.include"
            )
        return [parameters.vg_name]
    pool_name = parameters.pool or config.default_pool
    if pool_name is None:
        return sorted({vg.name for vg in report.vgs if config.allows(vg.name)})
    pool = config.pool(pool_name)
    if pool is None:
        names = ", ".join(known.name for known in config.pools) or "none"
        raise NoSpace(f"this node's configuration has no pool {pool_name!r}; its pools: {names}")
    return list(pool.vgs)


def _room(config: NodeConfig, vg: VolumeGroup, parameters: Parameters) -> str:
    said = f"{vg.name} has room for {human(largest(config, vg, parameters))}"
    if vg.missing_disks:
        said += ", as a disk of it is missing (bring it back, or take it out: vgreduce --removemissing)"
    if not vg.takes_metadata:
        said += ", as its metadata area is full (delete a volume, or give it a further disk with a larger area)"
    return said


def _way_out(parameters: Parameters) -> str:
    hint = "Free or add space"
    match parameters.layout:
        case Linear():
            pass
        case Striped():
            hint += ", use fewer stripes or lvmType: linear"
        case _:
            assert_never(parameters.layout)
    return f"{hint}, ask for less, or let the scheduler use another node."


def _strategy(config: NodeConfig, parameters: Parameters, groups: Sequence[VolumeGroup]) -> Strategy:
    name = parameters.pool or (config.default_pool if parameters.vg_name is None else None)
    pool = config.pool(name) if name is not None else config.pool_of(groups[0].name)
    return pool.strategy if pool is not None else Strategy.SPREAD


def _free_extents(config: NodeConfig, vg: VolumeGroup) -> int:
    pool = config.pool_of(vg.name)
    kept = -(-pool.reserve.of(vg.size_bytes) // vg.extent_bytes) if pool is not None else 0
    return max(0, vg.usable_free_extents - kept)


def _fit(config: NodeConfig, vg: VolumeGroup, parameters: Parameters, size_bytes: int) -> Placement | None:
    extents = -(-device_bytes(size_bytes, parameters.profile) // vg.extent_bytes)
    budget = _free_extents(config, vg)
    match parameters.layout:
        case Linear():
            return Placement(vg=vg, extents=extents) if extents <= budget else None
        case Striped() as striped:
            return _fit_striped(vg, striped, extents, budget)
        case _:
            assert_never(parameters.layout)


def _fit_striped(vg: VolumeGroup, striped: Striped, extents: int, budget: int) -> Placement | None:
    for count in _stripe_counts(vg, striped):
        rounded = -(-extents // count) * count
        if rounded <= _striped_room(vg, count, budget):
            disks = _emptiest(vg)[:count]
            fixed = replace(striped, count=count)
            return Placement(vg=vg, extents=rounded, layout=fixed, pvs=tuple(pv.name for pv in disks))
    return None


def _stripe_counts(vg: VolumeGroup, striped: Striped) -> list[int]:
    """Stripe counts to try, most first: the one asked for, else as many disks as have the room (never just one)."""
    if striped.count is not None:
        return [striped.count]
    return list(range(sum(pv.usable_free_extents > 0 for pv in vg.pvs), 1, -1))


def _striped_room(vg: VolumeGroup, count: int, budget: int) -> int:
    """Extents that fit in `count` equal stripes on the emptiest disks: the fullest of these limits all of them."""
    disks = _emptiest(vg)
    if len(disks) < count:
        return 0
    return min(disks[count - 1].usable_free_extents * count, budget - budget % count)


def _emptiest(vg: VolumeGroup) -> list[PhysicalVolume]:
    return sorted(vg.pvs, key=lambda pv: (-pv.usable_free_extents, pv.name))
