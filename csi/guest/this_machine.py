"""The real machine of a guest: `csi.guest.machine.Machine` by cryptsetup, device-mapper, mount, mkfs and udev."""

import logging
import os
import time
from collections.abc import Iterable, Iterator

from csi.core import disks, filesystems, mount_calls, mounts
from csi.core.command import Runner
from csi.core.device_number import DeviceNumber
from csi.core.filesystem import Filesystem
from csi.core.mount import Mount
from csi.core.sealed import HEADER_BYTES, HEADER_PARTS_BYTES, Profile, header_of
from csi.core.secret import Secret
from csi.guest.seal import cryptsetup, device_mapper, memfd, sealed_device
from csi.guest.seal.head import Head
from csi.guest.seal.mapping import Mapping

_log = logging.getLogger(__name__)


class ThisMachine:
    """Each method is described in `Machine`. udev is loaded by the methods that look for disks: `close` needs none."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def disks_appearing(self, seconds: float) -> Iterator[tuple[str, ...]]:
        """See `Machine`."""
        from csi.guest import devices

        return devices.appearing(seconds)

    def wait_for(self, device: str, seconds: float) -> str:
        """See `Machine`."""
        from csi.guest import devices

        return devices.wait_for(device, seconds)

    def node_of(self, number: DeviceNumber) -> str | None:
        """See `Machine`."""
        from csi.guest import devices

        return devices.node_of(number)

    def number_of(self, device: str) -> DeviceNumber:
        """See `Machine`."""
        return sealed_device.number_of(device)

    def read_head(self, device: str) -> Head:
        """See `Machine`."""
        return sealed_device.read_head(device)

    def read_slots(self, device: str, number: DeviceNumber | None = None) -> tuple[bytes, bytes]:
        """See `Machine`."""
        return sealed_device.read_slots(device, number)

    def write(self, device: str, offset: int, content: bytes | memoryview, number: DeviceNumber) -> None:
        """See `Machine`."""
        sealed_device.write(device, offset, content, number)

    def make_header(
        self, profile: Profile, *, device: str, passphrase: Secret, volume_key: Secret, luks_uuid: str
    ) -> bytes:
        """See `Machine`."""
        with memfd.writable(HEADER_BYTES) as descriptor, memfd.sealed(volume_key.reveal()) as key:
            cryptsetup.luks_format(
                self._runner,
                profile,
                header=descriptor,
                device=device,
                passphrase=passphrase,
                volume_key=key,
                luks_uuid=luks_uuid,
            )
            # Behind its keyslot cryptsetup leaves random bytes, which would have to be kept with it.
            return header_of(os.pread(descriptor, HEADER_PARTS_BYTES, 0))

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
        """See `Machine`. cryptsetup gets a copy that nobody can change any more; what follows its parts is zero."""
        with memfd.sealed(header[:HEADER_PARTS_BYTES], HEADER_BYTES) as descriptor:
            cryptsetup.open_volume(
                self._runner,
                profile,
                header=descriptor,
                device=device,
                name=name,
                passphrase=passphrase,
                read_only=read_only,
            )

    def unmap_volume(self, name: str) -> None:
        """See `Machine`."""
        cryptsetup.close_volume(self._runner, name)

    def mapping(self, name: str) -> Mapping | None:
        """See `Machine`."""
        return device_mapper.find(name)

    def stop_writes(self, name: str) -> None:
        """See `Machine`."""
        if device_mapper.find(name) is not None:
            device_mapper.stop_writes(self._runner, name)

    def is_mapped(self, name: str) -> bool:
        """See `Machine`."""
        return disks.mapped(name) is not None

    def is_read_only(self, mapping: Mapping) -> bool:
        """See `Machine`."""
        return device_mapper.is_read_only(mapping)

    def ensure_node(self, mapping: Mapping) -> None:
        """See `Machine`."""
        device_mapper.ensure_node(self._runner, mapping)

    def make_filesystem(self, device: str, filesystem: Filesystem) -> None:
        """See `Machine`."""
        filesystems.make(self._runner, device, filesystem)

    def check_filesystem(self, device: str, filesystem: Filesystem) -> None:
        """See `Machine`."""
        filesystems.check(self._runner, device, filesystem)

    def flush(self, device: str) -> None:
        """See `Machine`."""
        started = time.monotonic()
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _log.debug("flushed", extra={"device": device, "ms": round((time.monotonic() - started) * 1000)})

    def sync(self, target: str) -> None:
        """See `Machine`."""
        mounts.sync(target)

    def real_path(self, path: str) -> str:
        """See `Machine`."""
        return os.path.realpath(path)

    def mounts(self) -> tuple[Mount, ...]:
        """See `Machine`."""
        return mounts.listed()

    def mount(self, device: str, target: str, *, filesystem: Filesystem, options: Iterable[str]) -> None:
        """See `Machine`."""
        os.makedirs(target, mode=0o755, exist_ok=True)  # noqa: PTH103
        mount_calls.mount(device, target, fstype=filesystem, options=options)

    def make_read_only(self, target: str) -> None:
        """See `Machine`."""
        mounts.make_read_only(self._runner, target)

    def unmount(self, target: str) -> None:
        """See `Machine`."""
        mounts.unmount(self._runner, target)
