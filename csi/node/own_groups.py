"""What makes a volume group this node's own: the configuration, and the UUIDs at first sight, which a file keeps. Another
one keeps those of the groups in which volumes of this driver were.

They lie in kubelet's directory of this driver, so they outlive the driver and a reboot.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from csi.core import disks, files
from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused
from csi.node.config import NodeConfig
from csi.node.lvm.model import Report, Stranger
from csi.node.lvm.trust import Memory, Trust

USED: Final = "used-groups.json"
_log = logging.getLogger(__name__)
_MEND: Final = (
    "until that is mended no volume group is used, and volumes are only taken down. Bring the file back from a backup, or "
    "remove it if the groups that are here are all this node's own; it is read again by itself"
)


def trust(config: NodeConfig, pins: Path) -> Trust:
    """By the disks of the pools that name any, by the confirmed UUIDs, else by the file. While that can't be read, none."""
    used = pins.with_name(USED)

    def disks_of(vg: str) -> frozenset[DeviceNumber] | None:
        pool = config.pool_of(vg)
        if pool is None or not pool.devices:
            return None
        return frozenset(number for device in pool.devices if (number := disks.leads_to(device)) is not None)

    def made() -> Trust:
        seen = read(pins) or {}
        # A driver of before has told no use from a sight: what it saw may hold volumes.
        known = read(used)
        return Trust(
            uuids=config.vg_uuids,
            pool_disks=disks_of,
            pins=Memory(uuids=seen, keep=partial(write, pins)),
            used=Memory(uuids=dict(seen) if known is None else known, keep=partial(write, used), kept=known is not None),
        )

    try:
        return made()
    except Refused:
        return _UntilReadable(made)


class _UntilReadable(Trust):
    """Trusts no group until the file can be read: nobody knows which were used, and which of two of a name is right.

    The driver serves meanwhile: what is taken down needs no group.
    """

    def __init__(self, made: Callable[[], Trust]) -> None:
        super().__init__()
        self._made = made
        self._trust: Trust | None = None
        self._why = ""

    def separate(self, report: Report) -> Report:
        """All groups are strangers."""
        trust = self._read()
        if trust is not None:
            return trust.separate(report)
        strangers = tuple(Stranger(vg=vg, why=self._why) for vg in report.vgs)
        return replace(report, vgs=(), strangers=strangers)

    @property
    def known(self) -> Mapping[str, str]:
        """Raises `Refused`: a volume that isn't found may be in a group that was used, and isn't here."""
        trust = self._read()
        if trust is None:
            raise Refused(self._why)
        return trust.known

    def _read(self) -> Trust | None:
        with self._lock:
            if self._trust is None:
                try:
                    self._trust = self._made()
                    _log.info("the groups of this node are known again")
                except Refused as error:
                    if str(error) != self._why:
                        _log.error("no volume group is used", extra={"error": str(error)})
                    self._why = str(error)
            return self._trust


def read(path: Path) -> dict[str, str] | None:
    """UUIDs by names; None before the first one. Raises `Refused` for a file that can't be read."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} can't be read ({error}); {_MEND}") from error
    if not isinstance(found, dict):
        raise Refused(f"{path} holds no names of groups with their UUIDs; {_MEND}")
    return {str(name): str(uuid) for name, uuid in found.items()}


def write(path: Path, uuids: Mapping[str, str]) -> None:
    """Durable when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = json.dumps(dict(sorted(uuids.items())), indent=2).encode() + b"\n"
    files.write_atomic(path, content, mode=0o600, temporary=path.with_suffix(".new"))
