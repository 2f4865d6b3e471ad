"""A mount as the kernel reports it."""

from dataclasses import dataclass

from csi.core.device_number import DeviceNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo. `options` are the mount point's own, `super_options` the filesystem's."""

    target: str
    root: str
    device: DeviceNumber
    """A block device bound onto a file shows devtmpfs's here, and its own path in `root`."""
    fstype: str
    source: str
    options: frozenset[str]
    super_options: frozenset[str]

    @property
    def read_only(self) -> bool:
        """Whether it was mounted to be read only. A filesystem that stopped writing after an error is something else."""
        return "ro" in self.options
