"""The kernel's own view of a mapping: its whole table and its number."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi.core import disks
from csi.core.command import Runner
from csi.core.device_number import DeviceNumber

_SECONDS: Final = 30.0
_ENVIRONMENT: Final = {"DM_DISABLE_UDEV": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A live mapping."""

    name: str
    table: str
    device: DeviceNumber

    @property
    def path(self) -> str:
        """Its device node."""
        return f"/dev/mapper/{self.name}"

    @property
    def below(self) -> str | None:
        """Major and minor number (`8:16`) of the device that a one-line crypt table maps; None for any other table."""
        fields = self.table.split()
        is_crypt = "\n" not in self.table and len(fields) > 6 and fields[2] == "crypt"
        return fields[6] if is_crypt else None


def mapping_name(volume_id: str) -> str:
    """The name of a volume's mapping: of fixed length, whatever the id is."""
    return f"sealed-{hashlib.sha256(volume_id.encode()).hexdigest()[:32]}"


def find(runner: Runner, name: str) -> Mapping | None:
    """The live mapping of that name. The table is asked for whole: a filter by target would hide a wrong one."""
    device = disks.mapped(name)
    if device is None:
        return None
    table = runner.run(["dmsetup", "table", name], timeout=_SECONDS, env=_ENVIRONMENT).text.strip()
    return Mapping(name=name, table=table, device=device)


def is_read_only(mapping: Mapping, sysfs: Path = Path("/sys")) -> bool:
    """Whether the kernel refuses writes to the mapping."""
    return (sysfs / f"dev/block/{mapping.device}/ro").read_text().strip() == "1"


def ensure_node(runner: Runner, mapping: Mapping) -> None:
    """See that the mapping's node is there and leads to this very mapping; a guest may have no udev to make it."""
    try:
        right = DeviceNumber.of_block_device(Path(mapping.path).stat()) == mapping.device
    except FileNotFoundError:
        right = False
    if not right:
        Path(mapping.path).unlink(missing_ok=True)
        runner.run(["dmsetup", "mknodes", mapping.name], timeout=_SECONDS, env=_ENVIRONMENT)
