"""The node's disks and partitions for the page: the kernel's list, with what sysfs says of each. LVM is not asked."""

from collections.abc import Iterator
from pathlib import Path

from csi.core.local_storage import Device
from csi.core.size import SECTOR_BYTES
from csi.node.lvm.block_devices import BlockDevices


def shown(devices: BlockDevices, *, loop_devices: bool) -> Iterator[Device]:
    """Every disk and partition that has some size; loop devices only where they are this node's disks."""
    for device in devices.now():
        if device.name.startswith("loop") and not loop_devices:
            continue
        entry = Path(devices.sysfs) / "class/block" / device.name
        yield Device(
            name=device.path,
            total=device.sectors * SECTOR_BYTES,
            media_type="hdd" if _rotates(entry) else "ssd",
            read_only=_text(entry / "ro") == "1",
        )


def _rotates(entry: Path) -> bool:
    # A partition's queue is its disk's.
    own = _text(entry / "queue/rotational")
    return (own or _text(entry.resolve().parent / "queue/rotational")) == "1"


def _text(path: Path) -> str:
    """Empty when a device went away in between."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
