"""The kernel's own view of a mapping: its whole table and its number."""

from pathlib import Path
from typing import Final

from csi.core import device_mapper
from csi.core.command import Runner
from csi.core.device_number import DeviceNumber
from csi.guest.seal.mapping import Mapping

_SECONDS: Final = 30.0
_ENVIRONMENT: Final = {"DM_DISABLE_UDEV": "1"}


def find(name: str) -> Mapping | None:
    """The live mapping of that name. The table is asked for whole: a filter by target would hide a wrong one."""
    found, table = device_mapper.status(name), device_mapper.table(name)
    if found is None or table is None:
        return None
    return Mapping(name=name, table=table, device=found.number)


def stop_writes(runner: Runner, name: str) -> None:
    """Let no more I/O through to the disk, and flush nothing: what the kernel still holds back fails from now on."""
    argv = ["dmsetup", "wipe_table", "--force", "--noflush", "--nolockfs", name]
    runner.run(argv, timeout=_SECONDS, env=_ENVIRONMENT)


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
