"""LVM's rule for its filter, as lvm2's filter-regex.c has it, and what this driver makes of a configuration."""

import pytest

from csi.node.lvm import filters
from csi.node.lvm.filters import DeviceFilter


@pytest.mark.parametrize(
    ("patterns", "names", "taken"),
    [
        ([], ["/dev/sda"], True),
        (["r|.*|"], ["/dev/sda"], False),
        (["a|^/dev/sda$|", "r|.*|"], ["/dev/sda"], True),
        (["a|^/dev/sda$|", "r|.*|"], ["/dev/sdb"], False),
        (["r|^/dev/sda$|", "a|.*|"], ["/dev/sda"], False),
        (["r|^/dev/sda$|", "a|.*|"], ["/dev/sda", "/dev/block/8:0"], True),
        (["r|^/dev/sda$|"], ["/dev/sda", "/dev/block/8:0"], False),
        (["r|iscsi|"], ["/dev/sda", "/dev/disk/by-path/ip-iscsi-1"], False),
        (["r/sda/"], ["/dev/sda"], False),
    ],
)
def test_a_device_is_taken_as_lvm_takes_it(patterns: list[str], names: list[str], taken: bool) -> None:
    assert filters.takes(patterns, names) is taken


def test_network_disks_and_loop_devices_are_rejected_and_others_taken() -> None:
    patterns = DeviceFilter().patterns()
    names = ("sda", "nvme0n1", "loop0", "nbd0", "drbd1", "rbd0", "zram0", "dm-0")
    assert [name for name in names if filters.takes(patterns, [f"/dev/{name}"])] == ["sda", "nvme0n1", "dm-0"]


def test_with_named_disks_only_these_are_taken_by_either_name() -> None:
    named = DeviceFilter(disks=("/dev/disk/by-id/eui.0025",), only_disks=True)
    patterns = named.patterns(resolved=["/dev/nvme0n1"])
    assert filters.takes(patterns, ["/dev/nvme0n1"])
    assert filters.takes(patterns, ["/dev/nvme1n1", "/dev/disk/by-id/eui.0025"])
    assert not filters.takes(patterns, ["/dev/nvme1n1"])
    assert not filters.takes(patterns, ["/dev/nvme0n1p1"])
    assert not filters.takes(patterns, ["/dev/disk/by-id/euix0025"])


@pytest.mark.parametrize("only", [True, False])
def test_a_disk_that_is_left_out_for_now_is_not_taken_under_any_name(only: bool) -> None:
    named = DeviceFilter(disks=("/dev/sda", "/dev/disk/by-id/b"), only_disks=only)
    names = ["/dev/sdb", "/dev/disk/by-id/b", "/dev/block/8:16"]
    patterns = named.patterns(resolved=["/dev/sda", "/dev/sdb"], without=names)
    assert filters.takes(patterns, ["/dev/sda"])
    assert not filters.takes(patterns, names)
