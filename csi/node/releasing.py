"""Taking a volume's kernel device away at unstage, without LVM: a group that is locked or frozen must not stop it.

The kernel removes a device only while nothing has it open, in one piece; for a device that guests use this is the guard
against the next guest getting it while the last one still writes.
"""

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Final

from csi.core import device_mapper, disks
from csi.core.device_number import DeviceNumber
from csi.core.errors import InUse
from csi.node.lvm import dm_name
from csi.node.lvm.command import Lvm

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1
_ALONE: Final = frozenset({"linear", "striped"})
"""LVs of these targets are one device each. Others have devices of their own below, which LVM must take away with them."""


def release(lvm: Lvm, vg: str, name: str, patience_seconds: float = _PATIENCE_SECONDS) -> None:
    """Take the device of an LV away. One that isn't there is fine, and so is one that only loop devices still have.

    A virtual machine may close it a moment late. Raises `InUse` when it doesn't, naming what is on top of the device.
    """
    mapping = dm_name.encode(vg, name)
    if not device_mapper.targets(mapping) <= _ALONE:
        lvm.deactivate(vg, name)
        return
    give_up = time.monotonic() + patience_seconds
    while (found := device_mapper.status(mapping)) is not None:
        if device_mapper.remove(mapping):
            _forget_paths(f"/dev/{vg}/{name}", f"/dev/mapper/{mapping}", found.number)
            return
        if found.open_count <= disks.loops_on(found.number):
            _log.warning("device left active: a loop device lies on it", extra={"lv": f"{vg}/{name}"})
            return
        if time.monotonic() > give_up:
            raise InUse(_still_open(vg, name, found.number))
        time.sleep(_POLL_SECONDS)


def _still_open(vg: str, name: str, device: DeviceNumber) -> str:
    on_top = disks.holders(device)
    if on_top:
        return f"{vg}/{name} is in use by {', '.join(on_top)}, which is made on it; remove that, then repeat"
    return f"{vg}/{name} stays open; end the process or virtual machine that holds it"


def _forget_paths(link: str, node: str, device: DeviceNumber) -> None:
    """What LVM itself put into /dev, where no udev does. A path that leads to another device by now is not this one's."""
    for path in (link, node):
        if os.path.lexists(path) and disks.leads_to(path) in (None, device):
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
