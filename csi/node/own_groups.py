"""What makes a volume group this node's own: the configuration, and the UUIDs at first use, which a file keeps.

The file lies in kubelet's directory of this driver, so it outlives the driver and a reboot.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from csi.core import disks, files
from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused
from csi.node.config import NodeConfig
from csi.node.lvm.trust import Trust

_log = logging.getLogger(__name__)


def trust(config: NodeConfig, pins: Path) -> Trust:
    """By the disks of the pools that name any, by the confirmed UUIDs, else by the file. Raises as `read` does."""

    def disks_of(vg: str) -> frozenset[DeviceNumber] | None:
        pool = config.pool_of(vg)
        if pool is None or not pool.devices:
            return None
        return frozenset(number for device in pool.devices if (number := disks.leads_to(device)) is not None)

    def keep(uuids: Mapping[str, str]) -> None:
        try:
            write(pins, uuids)
        except OSError as error:
            # Volumes of a group that is used must not wait for another disk that is full.
            _log.error("can't remember the groups of this node", extra={"path": str(pins), "error": str(error)})

    return Trust(uuids=config.vg_uuids, pool_disks=disks_of, pins=read(pins), keep=keep)


def read(path: Path) -> dict[str, str]:
    """UUIDs by names; empty before the first use of any group. Raises `Refused` for a file that can't be read."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Refused(f"{path} can't be read ({error}); look at it, and remove it if it is worthless") from error
    if not isinstance(found, dict):
        raise Refused(f"{path} holds no names of groups with their UUIDs; look at it, and remove it if it is worthless")
    return {str(name): str(uuid) for name, uuid in found.items()}


def write(path: Path, uuids: Mapping[str, str]) -> None:
    """Durable when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = json.dumps(dict(sorted(uuids.items())), indent=2).encode() + b"\n"
    files.write_atomic(path, content, mode=0o600, temporary=path.with_suffix(".new"))
