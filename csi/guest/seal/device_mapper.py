"""The kernel's own view of a mapping: its whole table and its number."""

from pathlib import Path
from typing import Final

from csi.core import disks
from csi.core.command import Runner
from csi.core.device_number import DeviceNumber
from csi.guest.seal.mapping import Mapping

_SECONDS: Final = 30.0
_ENVIRONMENT: Final = {"DM_DISABLE_UDEV": "1"}


def find(runner: Runner, name: str) -> Mapping | None:
    """The live mapping of that name. The table is asked for whole: a filter by target would hide a wrong one."""
    device = disks.mapped(name)
    if device is None:
        return None
    table = runner.run(["dmsetup", "table", name], timeout=_SECONDS, env=_ENVIRONMENT).text.strip()
    return Mapping(name=name, table=table, device=device)


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
