"""Closing a volume, as a person asks for it and as a failed open does. Pure of I/O: the machine does it."""

from csi.guest.machine import Machine
from csi.guest.seal.mapping import mapping_name


def close(machine: Machine, volume_id: str) -> bool:
    """Unmount and close a volume; returns whether there was anything to do."""
    mapping = machine.mapping(mapping_name(volume_id))
    if mapping is None:
        return False
    for mount in reversed(machine.mounts()):
        if mount.device == mapping.device:
            machine.unmount(mount.target)
    machine.unmap_volume(mapping.name)
    return True


def close_unmounted(machine: Machine, volume_id: str) -> None:
    """Take the mapping away unless it is mounted: after a failure nothing stays mapped."""
    mapping = machine.mapping(mapping_name(volume_id))
    if mapping is not None and not any(mount.device == mapping.device for mount in machine.mounts()):
        machine.unmap_volume(mapping.name)
