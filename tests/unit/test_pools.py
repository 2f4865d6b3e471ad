"""A pool's disks come into its group once, together, and only when every one of them is there and blank."""

import dataclasses

import pytest

from csi.core.device_number import DeviceNumber
from csi.core.errors import ForeignContent, NotFound, Refused
from csi.node.config import Pool
from csi.node.lvm.model import PhysicalVolume, Report, VolumeGroup
from csi.node.plan.pools import CreateVG, DeviceView, ExtendVG, onboard

POOL = Pool(name="bulk", vgs=("bulk-0",), devices=("/dev/disk/by-id/one", "/dev/disk/by-id/two"))
ONE = DeviceView(configured="/dev/disk/by-id/one", real="/dev/sdb", holds=None)
TWO = DeviceView(configured="/dev/disk/by-id/two", real="/dev/sdc", holds=None)
EMPTY = Report(vgs=())


def pv(name: str, device: DeviceNumber | None = None) -> PhysicalVolume:
    return PhysicalVolume(name=name, extents=10, free_extents=10, allocatable=True, missing=False, device=device)


def having(*disks: str | PhysicalVolume, name: str = "bulk-0") -> Report:
    """A node whose group lies on these disks."""
    pvs = tuple(pv(disk) if isinstance(disk, str) else disk for disk in disks)
    vg = VolumeGroup(
        name=name,
        extent_bytes=4 << 20,
        extents=10 * len(disks),
        free_extents=10 * len(disks),
        writable=True,
        exported=False,
        partial=False,
        pvs=pvs,
        lvs=(),
    )
    return Report(vgs=(vg,))


def held(device: DeviceView, what: str) -> DeviceView:
    return DeviceView(configured=device.configured, real=device.real, holds=what)


def test_blank_disks_become_the_group_in_one_step() -> None:
    assert onboard(POOL, EMPTY, (ONE, TWO)) == (CreateVG(vg="bulk-0", devices=("/dev/sdb", "/dev/sdc")),)


def test_a_new_blank_disk_extends_the_group() -> None:
    report = having("/dev/sdb")
    assert onboard(POOL, report, (held(ONE, "LVM2_member"), TWO)) == (ExtendVG(vg="bulk-0", devices=("/dev/sdc",)),)


def test_nothing_is_done_when_all_disks_are_in_the_group() -> None:
    devices = (held(ONE, "LVM2_member"), held(TWO, "LVM2_member"))
    assert onboard(POOL, having("/dev/sdb", "/dev/sdc"), devices) == ()


def test_a_disk_is_known_by_either_of_its_names() -> None:
    devices = (held(ONE, "LVM2_member"), held(TWO, "LVM2_member"))
    assert onboard(POOL, having("/dev/disk/by-id/one", "/dev/sdc"), devices) == ()


def test_a_group_may_have_more_disks_than_are_configured() -> None:
    assert onboard(POOL, having("/dev/sdb", "/dev/sdz"), (held(ONE, "LVM2_member"),)) == ()


def test_without_devices_nothing_is_done() -> None:
    assert onboard(Pool(name="a", vgs=("vg0",)), EMPTY, ()) == ()


@pytest.mark.parametrize("report", [EMPTY, having("/dev/sdb")], ids=["no group yet", "a group"])
@pytest.mark.parametrize("what", ["ext4", "crypto_LUKS", "a partition table", "unknown data"])
def test_a_disk_that_holds_anything_is_left_alone_and_so_are_the_others(report: Report, what: str) -> None:
    with pytest.raises(ForeignContent, match=rf"pool bulk: /dev/disk/by-id/two holds {what}; .*wipefs -a") as caught:
        onboard(POOL, report, (ONE, held(TWO, what)))
    assert "it is left alone" in str(caught.value)


def test_a_disk_of_another_group_is_left_alone_and_that_group_named() -> None:
    with pytest.raises(ForeignContent, match="by-id/one is a disk of volume group root; it is left alone") as caught:
        onboard(POOL, having("/dev/sdb", name="root"), (held(ONE, "LVM2_member"), TWO))
    assert "wipefs" not in str(caught.value)


@pytest.mark.parametrize("name", ["/dev/mapper/mpatha", "/dev/dm-3", "/dev/disk/by-id/dm-uuid-mpath-1"])
def test_a_disk_of_the_group_is_known_by_its_number_whatever_its_names(name: str) -> None:
    shown = DeviceView(
        configured="/dev/disk/by-id/one", real="/dev/sdx", holds="LVM2_member", number=DeviceNumber(253, 3)
    )
    assert onboard(POOL, having(pv(name, DeviceNumber(253, 3))), (shown,)) == ()


def test_another_disk_under_the_old_name_of_a_disk_of_the_group_is_not_taken_for_it() -> None:
    shown = DeviceView(
        configured="/dev/disk/by-id/one", real="/dev/sdb", holds="LVM2_member", number=DeviceNumber(8, 32)
    )
    with pytest.raises(ForeignContent, match="LVM shows it in no volume group"):
        onboard(POOL, having(pv("/dev/sdb", DeviceNumber(8, 16))), (shown,))


@pytest.mark.parametrize("report", [EMPTY, having("/dev/sdz")], ids=["no group yet", "a group"])
def test_a_disk_that_a_killed_vgcreate_has_labelled_is_taken(report: Report) -> None:
    plan = onboard(POOL, dataclasses.replace(report, unused=(pv("/dev/sdb"),)), (held(ONE, "LVM2_member"), TWO))
    assert [step.devices for step in plan] == [("/dev/sdb", "/dev/sdc")]


def test_a_labelled_disk_that_holds_something_else_too_is_left_alone() -> None:
    with pytest.raises(ForeignContent, match="holds ext4"):
        onboard(POOL, dataclasses.replace(EMPTY, unused=(pv("/dev/sdb"),)), (held(ONE, "ext4"), TWO))


def test_a_labelled_disk_of_a_group_that_lvm_can_not_see_is_left_alone_and_nobody_told_to_wipe_it() -> None:
    with pytest.raises(ForeignContent, match="holds LVM2_member, and LVM shows it in no volume group") as caught:
        onboard(POOL, EMPTY, (held(ONE, "LVM2_member"), TWO))
    assert "wipefs" not in str(caught.value)


def test_two_names_of_one_disk_are_one_disk() -> None:
    again = DeviceView(configured="/dev/disk/by-path/one", real=ONE.real, holds=None)
    assert onboard(POOL, EMPTY, (ONE, again)) == (CreateVG(vg="bulk-0", devices=("/dev/sdb",)),)


def test_a_pool_whose_group_has_a_namesake_is_left_as_it_is() -> None:
    twins = Report(vgs=(*having("/dev/sdb").vgs, *having("/dev/sdz").vgs))
    with pytest.raises(Refused, match="two volume groups have the name bulk-0"):
        onboard(POOL, twins, (ONE, TWO))


@pytest.mark.parametrize("report", [EMPTY, having("/dev/sdb")], ids=["no group yet", "a group"])
def test_a_missing_disk_is_named_and_no_disk_is_touched(report: Report) -> None:
    gone = DeviceView(configured="/dev/disk/by-id/two", real=None, holds=None)
    with pytest.raises(NotFound, match="pool bulk: no device /dev/disk/by-id/two; plug it in or correct"):
        onboard(POOL, report, (ONE, gone))


def test_each_step_says_in_one_line_what_it_does() -> None:
    (create,) = onboard(POOL, EMPTY, (ONE, TWO))
    (extend,) = onboard(POOL, having("/dev/sdb"), (ONE, TWO))
    assert create.describe() == "create volume group bulk-0 on /dev/sdb, /dev/sdc"
    assert extend.describe() == "extend volume group bulk-0 by /dev/sdc"
