"""NodeUnpublish and NodeUnstage as pure plans: only what is the volume's own is taken away, and LVM is not asked."""

import dataclasses
from pathlib import PurePosixPath
from typing import Any

import pytest

from csi.core.device_number import DeviceNumber
from csi.core.errors import InUse
from csi.core.mount import Mount
from csi.node.kata.record import Record
from csi.node.lvm import names
from csi.node.lvm.live_device import LiveDevice
from csi.node.plan import steps, teardown
from csi.node.plan.node_view import TOMBSTONE_SOURCE, ActiveDevice, PathKind, PathView, Publications

VOLUME = names.checked_id("pvc-1")
KUBELET = PurePosixPath("/k")
TARGET = "/k/pods/1/volumes/kubernetes.io~csi/pv-1/mount"
BLOCK_TARGET = "/k/plugins/kubernetes.io/csi/volumeDevices/publish/pv-1/1"
STAGING, OTHER = "/k/plugins/kubernetes.io/csi/drv/1/globalmount", "/k/pods/2/volumes/kubernetes.io~csi/pv-1/mount"
NUMBER = DeviceNumber(254, 1)
RELEASE = steps.ReleaseDevice(vg="vg0", name="pvc-1")
WRITABLE = steps.SetReadOnly(device="/dev/vg0/pvc-1", read_only=False)


def mount(target: str, source: str = "/dev/mapper/vg0-pvc--1", fstype: str = "ext4") -> Mount:
    return Mount(
        target=target,
        root="/",
        device=NUMBER,
        fstype=fstype,
        source=source,
        options=frozenset(),
        super_options=frozenset(),
    )


def place(path: str, *owners: str | None, kind: PathKind = PathKind.DIRECTORY, **fields: Any) -> teardown.Place:
    """A path with one mount for each owner; the tombstone's is a tmpfs."""
    mounts = tuple(mount(fields.get("leads_to") or path) for _ in owners)
    return teardown.Place(view=PathView(path=path, kind=kind, mounts=mounts, **fields), owners=owners)


def tombstone(*owners: str) -> teardown.Place:
    mounts = tuple(mount(TARGET, f"{TOMBSTONE_SOURCE}/{owner}", "tmpfs") for owner in owners)
    return teardown.Place(view=PathView(path=TARGET, kind=PathKind.DIRECTORY, mounts=mounts), owners=owners)


def active(**fields: Any) -> tuple[ActiveDevice, ...]:
    right = fields.pop("node_is_right", True)
    return (ActiveDevice(vg="vg0", name="pvc-1", live=LiveDevice(number=NUMBER, **fields), node_is_right=right),)


def unpublish(target: teardown.Place, records: dict[str, str | None] | None = None, **fields: Any) -> steps.Plan:
    return teardown.unpublish(
        teardown.Unpublishing(
            volume_id=VOLUME,
            target=target,
            record_owners=records or {},
            roots=(KUBELET,),
            publications=fields.pop("shown", Publications()),
            **fields,
        )
    )


def unstage(staging: teardown.Place, **fields: Any) -> steps.Plan:
    shown = fields.pop("shown", Publications())
    return teardown.unstage(teardown.Unstaging(volume_id=VOLUME, staging=staging, publications=shown, **fields))


ABSENT = place(TARGET, kind=PathKind.ABSENT)
NOT_STAGED = place(STAGING)
STAGED = place(STAGING, "pvc-1")


# Unpublish


def test_the_record_goes_first_and_the_target_last() -> None:
    assert unpublish(tombstone("pvc-1"), {TARGET: "pvc-1"}) == (
        steps.RemoveRecord(target=TARGET),
        steps.Unmount(target=TARGET),
        steps.RemoveTarget(target=TARGET),
    )


def test_two_tombstones_that_were_stacked_go_both() -> None:
    assert unpublish(tombstone("pvc-1", "pvc-1"))[0] == steps.Unmount(target=TARGET)


@pytest.mark.parametrize(
    ("path", "leads_to"), [(TARGET, ""), (TARGET, "/data/pods/1/mount"), ("/elsewhere/target", "")]
)
def test_a_mount_of_the_volume_goes_wherever_it_is(path: str, leads_to: str) -> None:
    real = leads_to or path
    plan = unpublish(place(path, "pvc-1", leads_to=leads_to))
    assert plan == (steps.Unmount(target=real), steps.RemoveTarget(target=real))


@pytest.mark.parametrize("owners", [("pvc-2",), (None,), ("pvc-1", None), ("pvc-2", "pvc-1")])
def test_what_shows_anything_else_is_left_alone(owners: tuple[str | None, ...]) -> None:
    with pytest.raises(InUse, match="which is not volume pvc-1; it is left alone"):
        unpublish(place(TARGET, *owners))


def test_the_tombstone_of_another_volume_is_left_alone() -> None:
    with pytest.raises(InUse, match="shows volume pvc-2, which is not volume pvc-1"):
        unpublish(tombstone("pvc-2"), {TARGET: "pvc-2"})


def test_the_record_of_another_volume_is_left_alone() -> None:
    with pytest.raises(InUse, match="Kata record of volume pvc-2, not pvc-1"):
        unpublish(place(TARGET), {TARGET: "pvc-2"})


def test_a_record_that_cannot_be_read_goes_with_the_volumes_tombstone_only() -> None:
    assert steps.RemoveRecord(target=TARGET) in unpublish(tombstone("pvc-1"), {TARGET: None})
    assert unpublish(ABSENT, {TARGET: None}) == ()


def test_records_under_every_text_that_leads_to_the_target_go() -> None:
    plan = unpublish(tombstone("pvc-1"), {TARGET: "pvc-1", "/link/mount": "pvc-1"})
    assert plan[:2] == (steps.RemoveRecord(target=TARGET), steps.RemoveRecord(target="/link/mount"))


@pytest.mark.parametrize("path", [TARGET, BLOCK_TARGET])
@pytest.mark.parametrize("kind", [PathKind.DIRECTORY, PathKind.FILE])
def test_what_is_left_over_at_a_path_that_only_kubelet_makes_is_removed(path: str, kind: PathKind) -> None:
    assert unpublish(place(path, kind=kind)) == (steps.RemoveTarget(target=path),)


@pytest.mark.parametrize(
    "path",
    [
        "/k", "/k/pods", "/k/pods/1", "/k/pods/1/volumes", "/k/pods/1/volumes/kubernetes.io~csi", "/k/plugins",
        "/k/pods/1/volumes/kubernetes.io~csi/pv-1", "/k/pods/1/volumes/kubernetes.io~csi/pv-1/mount/below",
        "/k/pods/1/volumes/kubernetes.io~empty-dir/cache/mount", "/k/plugins_registry", "/elsewhere",
        "/k/plugins/kubernetes.io/csi/volumeDevices/publish/pv-1", STAGING,
    ],
)  # fmt: skip
def test_no_other_path_is_removed_though_it_is_empty(path: str) -> None:
    assert unpublish(place(path)) == ()


def test_taking_away_what_is_not_there_does_nothing() -> None:
    assert unpublish(ABSENT) == ()
    assert unpublish(ABSENT, {TARGET: "pvc-1"}) == (steps.RemoveRecord(target=TARGET),)


def test_a_device_becomes_writable_only_after_the_pod_has_lost_it() -> None:
    plan = unpublish(place(BLOCK_TARGET, "pvc-1", kind=PathKind.DEVICE), devices=active(read_only=True))
    assert plan == (steps.Unmount(target=BLOCK_TARGET), WRITABLE, steps.RemoveTarget(target=BLOCK_TARGET))


@pytest.mark.parametrize("kind", [PathKind.ABSENT, PathKind.FILE])
def test_a_flag_that_a_killed_call_left_is_cleared_by_the_next(kind: PathKind) -> None:
    assert WRITABLE in unpublish(place(BLOCK_TARGET, kind=kind), devices=active(read_only=True))


@pytest.mark.parametrize(
    ("device", "shown"),
    [
        (active(read_only=False), Publications()),
        (active(read_only=True), Publications(devices=(BLOCK_TARGET, OTHER))),
        (active(read_only=True, node_is_right=False), Publications()),
    ],
    ids=["writable", "another pod", "path leads elsewhere"],
)
def test_a_flag_that_others_need_or_that_is_not_there_stays(
    device: tuple[ActiveDevice, ...], shown: Publications
) -> None:
    target = place(BLOCK_TARGET, "pvc-1", kind=PathKind.DEVICE)
    assert WRITABLE not in unpublish(target, devices=device, shown=shown)


# Unstage


def test_a_staged_volume_is_unmounted_and_its_device_stays_for_the_next_stage() -> None:
    assert unstage(STAGED, devices=active(open_count=1, mounted=True)) == (steps.Unmount(target=STAGING),)


def test_the_device_of_a_volume_that_the_node_does_not_mount_is_taken_away() -> None:
    assert unstage(NOT_STAGED, devices=active()) == (RELEASE,)


def test_the_note_that_a_volume_is_staged_goes_last() -> None:
    assert unstage(NOT_STAGED, devices=active(), marked=True) == (RELEASE, steps.ForgetStaged(volume_id=VOLUME))


def test_a_filesystem_that_another_namespace_has_mounted_does_not_hold_the_volume_up() -> None:
    assert unstage(NOT_STAGED, devices=active(open_count=1, mounted=True)) == ()


def test_unstaging_what_is_not_staged_does_nothing() -> None:
    assert unstage(NOT_STAGED) == ()
    assert unstage(place(STAGING, kind=PathKind.ABSENT)) == ()


def test_a_volume_that_is_mounted_at_an_earlier_staging_path_is_unmounted_there_too() -> None:
    old = "/k/plugins/kubernetes.io/csi/pv/pv-1/globalmount"
    plan = unstage(STAGED, other_stagings=(old,), devices=active(open_count=1, mounted=True))
    assert plan == (steps.Unmount(target=STAGING), steps.Unmount(target=old))
    assert unstage(NOT_STAGED, other_stagings=(old,), devices=active()) == (steps.Unmount(target=old),)


def test_the_read_only_flag_of_a_killed_call_does_not_outlive_the_stage() -> None:
    assert unstage(NOT_STAGED, devices=active(read_only=True)) == (WRITABLE, RELEASE)


@pytest.mark.parametrize(
    "shown",
    [
        Publications(mounts=(TARGET,)),
        Publications(devices=(TARGET,)),
        Publications(tombstones=(TARGET,)),
        Publications(records={TARGET: Record(device="/dev/vg0/pvc-1", fstype="ext4")}),
    ],
)
def test_a_volume_that_a_pod_still_has_is_not_unstaged(shown: Publications) -> None:
    with pytest.raises(InUse, match=f"still published at {TARGET}; unpublish it first"):
        unstage(STAGED, shown=shown)


@pytest.mark.parametrize("owner", [None, "pvc-2"])
def test_a_foreign_mount_on_the_staging_path_is_left_alone(owner: str | None) -> None:
    with pytest.raises(InUse, match="it is left alone"):
        unstage(place(STAGING, owner))


def test_the_view_of_a_place_is_whole() -> None:
    broken = dataclasses.replace(STAGED, owners=())
    with pytest.raises(ValueError, match="zip"):
        unstage(broken)
