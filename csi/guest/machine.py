"""The machine as the guest's core sees it: the one way to anything outside its own memory but the broker.

The core decides and orders; what it may touch is the methods here. `csi.guest.this_machine` is the real one, and a test's
machine lives in memory.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from csi.core.device_number import DeviceNumber
from csi.core.filesystem import Filesystem
from csi.core.mount import Mount
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.guest.seal.head import Head
from csi.guest.seal.mapping import Mapping


class Machine(Protocol):
    """Disks, sealed devices, mappings, filesystems and mounts. Methods raise the errors of `csi.core.errors`."""

    # Disks

    def disks_appearing(self, seconds: float) -> Iterator[tuple[str, ...]]:
        """The whole disks now, and again whenever there may be others, until time is up."""
        ...

    def wait_for(self, device: str, seconds: float) -> str:
        """The device that a path leads to, waited for. Raises `NotFound` when time is up."""
        ...

    def node_of(self, number: DeviceNumber) -> str | None:
        """The node of a device; None when there is none."""
        ...

    # The raw device of a volume

    def number_of(self, device: str) -> DeviceNumber:
        """The number of a block device. Raises `NotFound` or `Refused`."""
        ...

    def read_head(self, device: str) -> Head:
        """Read the head once, exclusively. Raises `InUse` for a device that is mounted or mapped."""
        ...

    def read_slots(self, device: str, number: DeviceNumber | None = None) -> tuple[bytes, bytes]:
        """The two state records of this moment. Raises `Refused` when `number` is given and it is another device."""
        ...

    def write(self, device: str, offset: int, content: bytes | memoryview, number: DeviceNumber) -> None:
        """Write below the payload and flush. Raises `Refused` when the path leads to another device than `number`."""
        ...

    # Its mapping

    def make_header(
        self, profile: Profile, *, device: str, passphrase: Secret, volume_key: Secret, luks_uuid: str
    ) -> bytes:
        """A new LUKS header of 16 MiB in memory, as the profile has it, for this volume key. Writes nothing to `device`."""
        ...

    def map_volume(
        self,
        profile: Profile,
        header: bytes | memoryview,
        *,
        device: str,
        name: str,
        passphrase: Secret,
        read_only: bool,
    ) -> None:
        """Map `device` under `name` by this copy of the header. Raises `Tampered` when the passphrase does not fit."""
        ...

    def unmap_volume(self, name: str) -> None:
        """Take a mapping away; one that is not there is fine. Raises `InUse`."""
        ...

    def mapping(self, name: str) -> Mapping | None:
        """The live mapping of that name, as the kernel says."""
        ...

    def stop_writes(self, name: str) -> None:
        """Cut a mapping off its disk at once; nothing is written back. One that is not there is fine."""
        ...

    def is_mapped(self, name: str) -> bool:
        """Whether there is a mapping of that name; costs no process."""
        ...

    def is_read_only(self, mapping: Mapping) -> bool:
        """Whether the kernel refuses writes to the mapping."""
        ...

    def ensure_node(self, mapping: Mapping) -> None:
        """See that the mapping's device node leads to this very mapping."""
        ...

    # Its filesystem

    def make_filesystem(self, device: str, filesystem: Filesystem) -> None:
        """Make a filesystem. The caller has proved that nothing of value is there."""
        ...

    def check_filesystem(self, device: str, filesystem: Filesystem) -> None:
        """Repair what can be repaired without a decision. Raises `CommandError` when errors are left."""
        ...

    def flush(self, device: str) -> None:
        """What was written to the device is on its disk when this returns."""
        ...

    def sync(self, target: str) -> None:
        """Write back a mounted filesystem. Raises `OSError` for an error of any write-back that nobody was told yet."""
        ...

    # Mounts

    def real_path(self, path: str) -> str:
        """The path as the kernel lists it in mounts, links followed."""
        ...

    def mounts(self) -> tuple[Mount, ...]:
        """Every mount that this process sees."""
        ...

    def mount(self, device: str, target: str, *, filesystem: Filesystem, options: Iterable[str]) -> None:
        """Mount a filesystem; the mount point is made when it is missing. Raises what `mount_calls.mount` does."""
        ...

    def make_read_only(self, target: str) -> None:
        """Write a filesystem back and make it read-only. Raises `CommandError` while files are open for writing."""
        ...

    def unmount(self, target: str) -> None:
        """Unmount everything on exactly this path. Raises `InUse`."""
        ...
