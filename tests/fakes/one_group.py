"""A disk that is not there, whose label names the group `vg0`: only LVM can say what is in it."""

from collections.abc import Sequence

from csi.core.device_number import DeviceNumber
from csi.node.lvm.block_devices import BlockDevice
from csi.node.lvm.disk_view import DiskView, GroupName
from csi.node.lvm.metadata_area import Label

DISK = BlockDevice(name="sda", path="/dev/sda", number=DeviceNumber(8, 0), sectors=1 << 20, sequence="1")


class OneGroup:
    """In the place of `DiskViews`."""

    def look(self, devices: Sequence[BlockDevice]) -> tuple[DiskView, ...]:
        """The disk, always the same."""
        label = Label(pv_uuid="a-uuid", areas=(), in_use=True)
        return tuple(DiskView(device=device, label=label, group=GroupName(name="vg0", uuid="u")) for device in devices)

    settled = look
