"""Which volume groups a new LV may go to, and in which order they are tried. Pure arithmetic over one LVM report."""

from collections.abc import Callable
from typing import assert_never

from csi.core.errors import NoSpace
from csi.core.sealed import device_bytes
from csi.core.size import human
from csi.node.config import NodeConfig, Strategy
from csi.node.lvm import layout
from csi.node.lvm.layout import Linear, Striped
from csi.node.lvm.model import Report, VolumeGroup
from csi.node.plan.target import AS_RECORDED, Conditions, Placement, Target
from csi.node.volume import Parameters


def place(
    config: NodeConfig, report: Report, parameters: Parameters, size_bytes: int, now: Conditions = AS_RECORDED
) -> Placement:
    """The place for a volume whose usable size is `size_bytes`.

    Raises `NoSpace` saying what was looked at: it is the answer that makes the scheduler try another node.
    """
    found = targets(config, report, parameters, now)
    fit = next((place for target in found if (place := target.fit(parameters, size_bytes)) is not None), None)
    if fit is not None:
        return fit
    rooms = ", ".join(_said(target, parameters) for target in sorted(found, key=lambda target: target.vg.name))
    needed = human(device_bytes(size_bytes, parameters.profile))
    raise NoSpace(
        f"no volume group can take {needed} ({layout.name(parameters.layout)}): {rooms}. {_way_out(parameters)}"
    )


def targets(
    config: NodeConfig, report: Report, parameters: Parameters, now: Conditions = AS_RECORDED
) -> tuple[Target, ...]:
    """The groups that a volume with these parameters may go to, in the order of the pool's strategy.

    Raises `NoSpace` when this node has none.
    """
    found = [_target(config, vg, now) for vg in _candidates(config, report, parameters)]
    spread = _strategy(config, parameters, found[0].vg) is Strategy.SPREAD
    return tuple(sorted(found, key=lambda target: (-target.room if spread else target.room, target.vg.name)))


def may_lie_in(config: NodeConfig, parameters: Parameters) -> Callable[[str], bool]:
    """Whether a volume with these parameters can have been put into a group of this name."""
    if parameters.vg_name is not None:
        return lambda vg: vg == parameters.vg_name
    pool_name = parameters.pool or config.default_pool
    if pool_name is None:
        return config.allows
    pool = config.pool(pool_name)
    return lambda vg: pool is not None and vg in pool.vgs


def all_targets(config: NodeConfig, report: Report, now: Conditions = AS_RECORDED) -> tuple[Target, ...]:
    """All groups that the driver may use here."""
    return tuple(
        _target(config, vg, now) for vg in report.vgs if config.allows(vg.name) and vg.name not in report.ambiguous
    )


def _target(config: NodeConfig, vg: VolumeGroup, now: Conditions) -> Target:
    pool = config.pool_of(vg.name)
    kept = -(-pool.reserve.of(vg.size_bytes) // vg.extent_bytes) if pool is not None else 0
    return Target(vg=vg, kept_extents=kept, now=now)


def _candidates(config: NodeConfig, report: Report, parameters: Parameters) -> list[VolumeGroup]:
    names = _wanted_names(config, report, parameters)
    unreadable = {group.name: group for group in report.unreadable}
    usable = [name for name in names if name not in report.ambiguous and name not in unreadable]
    groups = [vg for name in usable if (vg := report.vg(name)) is not None]
    twins = [report.why_ambiguous(name) for name in names if name in report.ambiguous]
    blocked = [
        f"volume group {name} can't be looked into: {unreadable[name].why}. Look at its disks and at the kernel's log"
        for name in names
        if name in unreadable
    ]
    strange = [stranger.said for name in names for stranger in report.strangers_of(name)]
    if (twins or blocked or strange) and not groups:
        raise NoSpace(". ".join((*twins, *blocked, *strange)))
    if not groups:
        here = ", ".join(sorted({vg.name for vg in report.vgs if config.allows(vg.name)})) or "none"
        raise NoSpace(
            f"this node has no volume group {' or '.join(names) or 'that its configuration allows'}; usable here: {here}. "
            "Create the group, correct the StorageClass, or let the scheduler use another node."
        )
    return groups


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


def _said(target: Target, parameters: Parameters) -> str:
    said = f"{target.vg.name} has room for {human(target.largest(parameters))}"
    return f"{said}, as {target.closed}" if target.closed else said


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


def _strategy(config: NodeConfig, parameters: Parameters, first: VolumeGroup) -> Strategy:
    name = parameters.pool or (config.default_pool if parameters.vg_name is None else None)
    pool = config.pool(name) if name is not None else config.pool_of(first.name)
    return pool.strategy if pool is not None else Strategy.SPREAD
