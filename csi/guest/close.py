"""Closing a volume, as a person asks for it and as a failed open does. Pure of I/O: the machine does it.

What the kernel could not write it tells once, to whoever asks before the filesystem is gone. So `close` asks.
"""

from csi.core.errors import SealedLocalError, ToolFailed
from csi.core.mount import Mount
from csi.guest.machine import Machine
from csi.guest.seal.mapping import Mapping, mapping_name

_STOPPED = frozenset(("ro", "shutdown", "emergency_ro"))
"""What the kernel shows of a writable filesystem that stopped writing after an error."""


def close(machine: Machine, volume_id: str) -> bool:
    """Write back, unmount and close a volume; returns whether there was anything to do.

    Raises `ToolFailed` when not all that was written is on the disk. The volume is closed then, too, as far as it can be.
    """
    mapping = machine.mapping(mapping_name(volume_id))
    if mapping is None:
        return False
    lost: list[str] = []
    try:
        _take_away(machine, mapping, lost)
    except SealedLocalError as error:
        if not lost:
            raise
        raise ToolFailed(f"{_told(volume_id, lost)}. And it is not closed: {error}") from error
    if lost:
        raise ToolFailed(f"{_told(volume_id, lost)}. It is closed")
    return True


def _take_away(machine: Machine, mapping: Mapping, lost: list[str]) -> None:
    writable = not machine.is_read_only(mapping)
    for mount in reversed(machine.mounts()):
        if mount.device == mapping.device:
            if writable and not mount.read_only:
                _write_back(machine, mount, lost)
            machine.unmount(mount.target)
    if writable:
        # What the filesystem itself wrote last, and what waits in the disk's own memory.
        machine.ensure_node(mapping)
        try:
            machine.flush(mapping.path)
        except OSError as error:
            lost.append(f"{mapping.path}: {error.strerror or error}")
    machine.unmap_volume(mapping.name)


def _write_back(machine: Machine, mount: Mount, lost: list[str]) -> None:
    if mount.super_options & _STOPPED:
        lost.append(f"{mount.target}: the filesystem stopped writing after an error")
    try:
        machine.sync(mount.target)
    except OSError as error:
        lost.append(f"{mount.target}: {error.strerror or error}")


def _told(volume_id: str, lost: list[str]) -> str:
    return (
        f"volume {volume_id}: not all that was written is on the disk ({'; '.join(lost)}). What was written last may be "
        "lost; look at the kernel's log and at the disk"
    )
