"""What makes a volume group this node's own: the configuration, and the UUIDs at first sight, which a file keeps. Another
one keeps those of the groups in which volumes of this driver were.

They lie in kubelet's directory of this driver, so they outlive the driver and a reboot.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from csi.core import disks, files
from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused
from csi.node.config import NodeConfig
from csi.node.lvm.trust import Memory, Trust

USED: Final = "used-groups.json"


def trust(config: NodeConfig, pins: Path) -> Trust:
    """By the disks of the pools that name any, by the confirmed UUIDs, else by the file. Raises as `read` does."""
    used = pins.with_name(USED)
    seen = read(pins) or {}
    # A driver of before has told no use from a sight: what it saw may hold volumes.
    known = read(used)

    def disks_of(vg: str) -> frozenset[DeviceNumber] | None:
        pool = config.pool_of(vg)
        if pool is None or not pool.devices:
            return None
        return frozenset(number for device in pool.devices if (number := disks.leads_to(device)) is not None)

    return Trust(
        uuids=config.vg_uuids,
        pool_disks=disks_of,
        pins=Memory(uuids=seen, keep=partial(write, pins)),
        used=Memory(uuids=dict(seen) if known is None else known, keep=partial(write, used), kept=known is not None),
    )


def read(path: Path) -> dict[str, str] | None:
    """UUIDs by names; None before the first one. Raises `Refused` for a file that can't be read."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} can't be read ({error}); look at it, and remove it if it is worthless") from error
    if not isinstance(found, dict):
        raise Refused(f"{path} holds no names of groups with their UUIDs; look at it, and remove it if it is worthless")
    return {str(name): str(uuid) for name, uuid in found.items()}


def write(path: Path, uuids: Mapping[str, str]) -> None:
    """Durable when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = json.dumps(dict(sorted(uuids.items())), indent=2).encode() + b"\n"
    files.write_atomic(path, content, mode=0o600, temporary=path.with_suffix(".new"))
