"""Block devices of a guest, found by udev: what there is now, and waiting for what is plugged in.

A device's name proves nothing; who it is, its authenticated records say. Kernel events are hints to look again, and a poll
stands behind them, because a netlink queue may overflow and a guest may have no udev daemon.
"""

import time
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Final

import pyudev

from csi.core.device_number import DeviceNumber
from csi.core.disks import resolved
from csi.core.errors import NotFound

_POLL_SECONDS: Final = 1.0
_NOT_DISKS: Final = ("loop", "ram", "dm-", "zram", "sr", "fd")


@cache
def context() -> pyudev.Context:
    """The one way to udev's library: looking for the library starts a process each time."""
    return pyudev.Context()


def disks() -> tuple[str, ...]:
    """Device nodes of whole disks, in the order of their names."""
    found = context().list_devices(subsystem="block", DEVTYPE="disk")
    return tuple(
        sorted(
            device.device_node
            for device in found
            if device.device_node is not None and not device.sys_name.startswith(_NOT_DISKS)
        )
    )


def node_of(number: DeviceNumber) -> str | None:
    """The node of a device; None when there is none."""
    try:
        found = pyudev.Devices.from_device_number(context(), "block", number.combined)
    except pyudev.DeviceNotFoundError:
        return None
    return str(found.device_node) if found.device_node is not None else None


def appearing(seconds: float) -> Iterator[tuple[str, ...]]:
    """The disks now, and again whenever the kernel reports a change, until time is up."""
    monitor = pyudev.Monitor.from_netlink(context(), source="kernel")
    monitor.filter_by("block")
    monitor.start()
    give_up = time.monotonic() + seconds
    while True:
        yield disks()
        if time.monotonic() >= give_up:
            return
        _wait(monitor, min(_POLL_SECONDS, max(0.0, give_up - time.monotonic())))


def wait_for(device: str, seconds: float) -> str:
    """Wait until a path leads to a block device; returns that device, links resolved.

    Raises `NotFound` naming the path and the disks that there are.
    """
    # What is there already is not asked of udev.
    for _ in chain(((),), appearing(seconds)):
        found = resolved(device)
        if found is not None:
            return found
    present = disks()
    raise NotFound(f"no device {device} after {seconds:g} s; there are: {', '.join(present) or 'none'}")


def _wait(monitor: pyudev.Monitor, seconds: float) -> None:
    try:
        monitor.poll(seconds)
    except OSError:
        # The queue overflowed and events are lost; the caller looks again anyway.
        time.sleep(min(seconds, 0.1))
