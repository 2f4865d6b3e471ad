"""Bringing a pool's disks into its volume group: create the group, or extend it by disks that are new and blank.

A disk with any signature is refused. It is never forced: the operator looks, and wipes it by hand if it is really free.
"""

from dataclasses import dataclass

from csi.model.errors import ForeignContent, NotFound
from csi.model.lvm import Report
from csi.wire.node_config import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A disk that the configuration names: its real path, and what is on it."""

    configured: str
    real: str | None
    """The device that the configured path leads to; None when there is none."""
    holds: str | None
    """A signature, or words for other content; None when it is blank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVG:
    """Make a volume group of blank disks."""

    vg: str
    devices: tuple[str, ...]

    def describe(self) -> str:
        """One line for the log."""
        return f"create volume group {self.vg} on {', '.join(self.devices)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendVG:
    """Add blank disks to a volume group."""

    vg: str
    devices: tuple[str, ...]

    def describe(self) -> str:
        """One line for the log."""
        return f"extend volume group {self.vg} by {', '.join(self.devices)}"


def onboard(pool: Pool, report: Report, devices: tuple[DeviceView, ...]) -> tuple[CreateVG | ExtendVG, ...]:
    """What to do so that all of the pool's disks are in its group; nothing when they are.

    Raises `NotFound` for a missing disk and `ForeignContent` for one that holds anything; then no disk is touched.
    """
    vg = report.vg(pool.vgs[0])
    members = {pv.name for pv in vg.pvs} if vg is not None else set()
    new = []
    for device in devices:
        if device.real is None:
            raise NotFound(f"pool {pool.name}: no device {device.configured}; plug it in or correct the configuration")
        if device.real in members or device.configured in members:
            continue
        if device.holds is not None:
            raise ForeignContent(
                f"pool {pool.name}: {device.configured} holds {device.holds}; it is left alone. If all of it is useless, "
                f"wipe it by hand (wipefs -a {device.configured}) and restart the driver"
            )
        new.append(device.real)
    if not new:
        return ()
    if vg is None:
        return (CreateVG(vg=pool.vgs[0], devices=tuple(new)),)
    return (ExtendVG(vg=vg.name, devices=tuple(new)),)
