"""What the kernel does with an LV now. It changes at any moment, so it is read once a look and never kept.

What LVM's metadata says of the LV is `csi.node.lvm.model`: that changes only when somebody commits a change of the group.
"""

from dataclasses import dataclass

from csi.core.device_number import DeviceNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveDevice:
    """The kernel's device of an active LV."""

    number: DeviceNumber
    open_count: int = 0
    """Mounts, loop devices, processes and mappings on top, each counted once."""
    loops: int = 0
    """How many of these are loop devices: kubelet attaches one to every raw block volume that it maps."""
    read_only: bool = False
    """The kernel's flag, which block mode sets."""
    suspended: bool = False
    mounted: bool = False
    """Whether a filesystem on it is mounted somewhere, be it in another mount namespace: one that has it open."""
    on_top: tuple[str, ...] = ()
    """Other mappings that are made on it."""
    stale: bool = False
    """It was made on a disk that has gone, or has come back under another number: what is written there is lost."""

    @property
    def is_open(self) -> bool:
        """Whether anything at all has it open."""
        return self.open_count > 0

    @property
    def held(self) -> bool:
        """Whether anything but loop devices has it open."""
        return self.open_count > self.loops
