"""A path is where it leads, a mount is whose device it shows by the kernel's word, and a dead disk is not touched."""

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from csi.core import device_mapper, disks
from csi.core.device_mapper import Mapping
from csi.core.device_number import DeviceNumber
from csi.core.mount import Mount
from csi.node import observe
from csi.node.kata.record import Record
from csi.node.kata.registry import Entry
from csi.node.kubelet_places import KubeletPlaces
from csi.node.lvm import names
from csi.node.lvm.model import LogicalVolume, PhysicalVolume, Report, VolumeGroup
from csi.node.plan.node_view import TOMBSTONE_SOURCE, PathKind

VOLUME = names.checked_id("pvc-1")
NUMBER, DISK, OLD_DISK = DeviceNumber(254, 1), DeviceNumber(8, 32), DeviceNumber(8, 16)


def mount(target: str, source: str = "x", fstype: str = "ext4", root: str = "/") -> Mount:
    return Mount(
        target=target,
        root=root,
        device=NUMBER,
        fstype=fstype,
        source=source,
        options=frozenset(),
        super_options=frozenset(),
    )


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> dict[DeviceNumber, tuple[str, str]]:
    """Device-mapper's names and UUIDs, by number."""
    made: dict[DeviceNumber, tuple[str, str]] = {NUMBER: ("vg0-pvc--1", "LVM-abc")}
    monkeypatch.setattr(disks, "mapping_name", lambda number: made.get(number, (None, None))[0])
    monkeypatch.setattr(disks, "mapping_uuid", lambda number: made.get(number, (None, None))[1])
    return made


def test_a_mount_behind_a_link_is_found_and_a_link_at_the_end_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "data/mount").mkdir(parents=True)
    (tmp_path / "pods").symlink_to("data")
    (tmp_path / "last").symlink_to("data")
    listed = (mount(f"{tmp_path}/data/mount"),)
    view = observe.path(f"{tmp_path}/pods/mount", listed)
    assert (view.path, view.real, view.mounts) == (f"{tmp_path}/pods/mount", f"{tmp_path}/data/mount", listed)
    assert observe.path(f"{tmp_path}/last", ()).kind is PathKind.OTHER
    assert observe.path(f"{tmp_path}/pods/absent", ()).kind is PathKind.ABSENT


def test_a_mounted_filesystem_is_not_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dead(_: str) -> os.stat_result:
        raise OSError(5, "Input/output error")

    where = str(tmp_path / "mount")
    monkeypatch.setattr(observe, "real", lambda path: path)
    monkeypatch.setattr(observe.os, "lstat", dead)
    assert observe.path(where, (mount(where),)).kind is PathKind.DIRECTORY


@pytest.mark.parametrize(
    ("on", "owner"),
    [
        (mount("/k/t"), "pvc-1"),
        (mount("/k/t", f"{TOMBSTONE_SOURCE}/pvc-2", "tmpfs"), "pvc-2"),
        (mount("/k/t", TOMBSTONE_SOURCE, "tmpfs"), "pvc-1"),
        (mount("/k/t", "tmpfs", "tmpfs"), None),
        (mount("/k/t", "devtmpfs", "devtmpfs", "/dm-1//deleted"), "pvc-1"),
        (mount("/k/t", "devtmpfs", "devtmpfs", "/dm-1"), None),
    ],
)
def test_whose_a_mount_is(named: dict[DeviceNumber, tuple[str, str]], on: Mount, owner: str | None) -> None:
    if on.fstype == "tmpfs" and not on.source.startswith(TOMBSTONE_SOURCE):
        on = replace(on, device=DeviceNumber(0, 50))
    view = observe.PathView(path="/k/t", mounts=(on,))
    assert observe.place(view, VOLUME, ()).owners == (owner,)


def test_a_tombstone_that_names_nobody_is_its_records(named: dict[DeviceNumber, tuple[str, str]]) -> None:
    view = observe.PathView(path="/k/t", mounts=(mount("/k/t", TOMBSTONE_SOURCE, "tmpfs"),))
    assert observe.place(view, VOLUME, (None, "pvc-3")).owners == ("pvc-3",)


def test_only_a_device_of_lvm_is_a_volumes(named: dict[DeviceNumber, tuple[str, str]]) -> None:
    assert observe.is_volume(NUMBER, VOLUME)
    named[NUMBER] = ("vg0-pvc--1", "CRYPT-abc")
    assert not observe.is_volume(NUMBER, VOLUME)
    assert not observe.is_volume(None, VOLUME)


def lv() -> LogicalVolume:
    return LogicalVolume(name="pvc-1", vg="vg0", size_bytes=1, tags=frozenset(), partial=False)


def report(disk: DeviceNumber | None) -> Report:
    pv = PhysicalVolume(name="/dev/a", extents=1, free_extents=0, allocatable=True, missing=False, device=disk)
    group = VolumeGroup(
        name="vg0",
        extent_bytes=1,
        extents=1,
        free_extents=0,
        writable=True,
        exported=False,
        partial=False,
        pvs=(pv,),
        lvs=(lv(),),
    )
    return Report(vgs=(group,))


@pytest.mark.parametrize(
    ("table", "disk", "stale"),
    [
        ((DISK, True, "linear"), DISK, False),
        ((DISK, True, "linear"), None, False),
        ((OLD_DISK, False, "linear"), DISK, True),
        ((OLD_DISK, True, "linear"), DISK, True),
        ((OLD_DISK, True, "thin"), DISK, False),
        ((OLD_DISK, False, "thin"), DISK, True),
    ],
)
def test_a_device_on_a_disk_that_is_not_the_groups_any_more_is_stale(
    monkeypatch: pytest.MonkeyPatch, table: tuple[DeviceNumber, bool, str], disk: DeviceNumber | None, stale: bool
) -> None:
    below, there, targets = table
    monkeypatch.setattr(device_mapper, "lies_on", lambda _: frozenset({below}))
    monkeypatch.setattr(device_mapper, "targets", lambda _: frozenset({targets}))
    monkeypatch.setattr(disks, "exists", lambda _: there)
    assert observe._is_stale(lv(), report(disk)) is stale


def test_the_devices_of_a_volume_are_found_by_their_kernel_names(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = {
        "vg0-pvc--1": Mapping(number=NUMBER, uuid="LVM-a", open_count=2, suspended=False),
        "vg1-pvc--1": Mapping(number=DISK, uuid="other", open_count=0, suspended=False),
        "vg0-pvc--10": Mapping(number=OLD_DISK, uuid="LVM-b", open_count=0, suspended=False),
        "vg0-pvc--1-real": Mapping(number=OLD_DISK, uuid="LVM-a-real", open_count=0, suspended=False),
    }
    monkeypatch.setattr(device_mapper, "names", lambda: tuple(kernel))
    monkeypatch.setattr(device_mapper, "status", kernel.get)
    (found,) = observe.devices(VOLUME)
    assert (found.path, found.live.number, found.live.open_count) == ("/dev/vg0/pvc-1", NUMBER, 2)
    assert not found.node_is_right


def test_every_place_that_shows_a_volume_is_seen() -> None:
    own = Record(device="/dev/vg0/pvc-1", fstype="ext4")
    other = Record(device="/dev/vg0/pvc-2", fstype="ext4")
    entries = (Entry(target="/k/r", record=own), Entry(target="/k/o", record=other), Entry(target="/k/u", record=None))
    listed = (mount("/k/staging"), mount("/k/a"), mount("/k/t", f"{TOMBSTONE_SOURCE}/pvc-1", "tmpfs"))
    shown = observe.publications(entries, listed[:2], VOLUME, (NUMBER,), "/k/staging")
    assert (shown.mounts, shown.records) == (("/k/a",), {"/k/r": own})
    assert observe.publications((), listed, VOLUME, ()).targets == ("/k/t",)


def test_where_kubelet_stages_and_publishes_is_told_with_links_followed(tmp_path: Path) -> None:
    for folder in ("real/plugins", "data/pods"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "kubelet").symlink_to("real")
    (tmp_path / "real/pods").symlink_to(tmp_path / "data/pods")
    places = KubeletPlaces.of(PurePosixPath(tmp_path / "kubelet"))
    staging = f"{tmp_path}/real/plugins/kubernetes.io/csi/drv/1/globalmount"
    block = f"{tmp_path}/real/plugins/kubernetes.io/csi/volumeDevices/publish/pv/1"
    pod = f"{tmp_path}/data/pods/1/volumes/kubernetes.io~csi/pv/mount"
    assert [places.stages(path) for path in (staging, block, pod)] == [True, False, False]
    assert [places.publishes(path) for path in (staging, block, pod, "/mnt/look")] == [False, True, True, False]


def test_what_is_mounted_on_a_path_is_told_by_the_mount_itself(tmp_path: Path) -> None:
    assert observe.mounted_at(str(tmp_path)) is None
    assert observe.mounted_at(str(tmp_path / "absent")) is None
    proc = observe.mounted_at("/proc")
    assert proc is not None
    assert proc.major == 0
