"""Which disks the real LVM looks at under this driver's settings, and what it makes of them.

Each scenario runs in a process of its own, with loop devices in a /dev of its own: there they have the names that udev
would give them, and no other disk has one. Nothing is activated, so no device-mapper is needed.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from csi.core import disks as devices
from csi.core import filesystems
from csi.core.command import LocalRunner, Result
from csi.core.errors import SealedLocalError
from csi.node.apply import apply
from csi.node.config import NodeConfig, Pool
from csi.node.lvm.command import Lvm
from csi.node.lvm.filters import DeviceFilter
from csi.node.lvm.model import Report
from csi.node.lvm.trust import Trust
from csi.node.plan import placement, pools, steps
from csi.node.volume import Parameters

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    missing = [tool for tool in ("lvm", "losetup", "unshare", "blkid") if shutil.which(tool, path=TOOLS) is None]
    if missing:
        return f"{missing[0]} is missing"
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True)
    return f"no loop devices: {found.stderr.strip()}" if found.returncode else None


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    reason = _why_not()
    if reason is not None and os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def minors(tmp_path: Path) -> Iterator[list[int]]:
    """Minor numbers of three loop devices on blank files."""
    with ExitStack() as stack:
        found = []
        for number in range(3):
            image = tmp_path / f"disk{number}"
            image.touch()
            os.truncate(image, 64 << 20)
            argv = ["losetup", "--find", "--show", str(image)]
            device = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
            stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
            found.append(os.minor(Path(device).stat().st_rdev))
        yield found


def inside(scenario: Callable[[list[int]], Any], minors: list[int]) -> Any:
    """What a scenario of a file of these tests answers in a process with its own mounts."""
    argv = ["unshare", "--mount", sys.executable, "-m", scenario.__module__, scenario.__name__]
    done = subprocess.run([*argv, json.dumps(minors)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _own_places() -> None:
    for place in ("/dev", "/run", "/etc/lvm"):
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    os.mknod("/dev/null", 0o020666, os.makedev(1, 3))
    os.mknod("/dev/urandom", 0o020666, os.makedev(1, 9))


class WithoutDeviceMapper(LocalRunner):
    """Runs LVM on a machine whose kernel has no device-mapper."""

    def run(self, argv: Sequence[str], **how: Any) -> Result:
        # `lvmconfig` would show these settings alone.
        if argv[0] == "lvm" and argv[1] != "lvmconfig":
            argv = [*argv[:2], "--config", "global/activation=0", *argv[2:]]
        return super().run(argv, **how)


def _lvm(**settings: Any) -> Lvm:
    return Lvm(WithoutDeviceMapper(), udev=False, lock_file=Path("/run/lock-file"), **settings)


def _node(minor: int, name: str, *links: str) -> str:
    """The only names of a disk."""
    os.mknod(name, 0o060600, os.makedev(7, minor))
    for link in links:
        Path(link).parent.mkdir(exist_ok=True, parents=True)
        Path(link).symlink_to(name)
    return name


def _forget(*names: str) -> None:
    for name in names:
        Path(name).unlink()


def _groups(**settings: Any) -> list[str]:
    return sorted(vg.name for vg in _lvm(**settings).report().vgs)


def _group(name: str, *disks: str) -> None:
    _lvm().create_vg(name, disks)


def _try(step: Callable[[], object]) -> str:
    try:
        step()
    except SealedLocalError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


# Which disks are looked at


def network_disk_with_an_alias(minors: list[int]) -> dict[str, list[str]]:
    _group("vg0", _node(minors[0], "/dev/sda"))
    seen = {"/dev/sda": _groups()}
    _forget("/dev/sda")
    for name in ("/dev/nbd0", "/dev/rbd0", "/dev/drbd0", "/dev/zram0"):
        links = (f"/dev/block/7:{minors[0]}", "/dev/disk/by-id/some-disk")
        _node(minors[0], name, *links)
        seen[name] = _groups(device_filter=DeviceFilter(loop_devices=True))
        _forget(name, *links)
    return seen


def test_a_network_disk_is_hidden_whatever_other_names_udev_gives_it(minors: list[int]) -> None:
    seen = inside(network_disk_with_an_alias, minors)
    assert seen == {"/dev/sda": ["vg0"], "/dev/nbd0": [], "/dev/rbd0": [], "/dev/drbd0": [], "/dev/zram0": []}


def tenant_behind_a_loop_device(minors: list[int]) -> dict[str, list[str]]:
    for number, minor in enumerate(minors):
        _group(f"vg{number}", _node(minor, f"/dev/sd{number}"))
        _forget(f"/dev/sd{number}")
        _node(minor, f"/dev/loop{number}", f"/dev/block/7:{minor}")
    return {
        "unless told": _groups(),
        "two in a pool": _groups(device_filter=DeviceFilter(disks=("/dev/loop0", "/dev/loop2", "/dev/sdz"))),
        "all": _groups(device_filter=DeviceFilter(loop_devices=True)),
    }


def test_a_group_that_a_tenant_wrote_behind_a_loop_device_is_hidden(minors: list[int]) -> None:
    seen = inside(tenant_behind_a_loop_device, minors)
    assert seen == {"unless told": [], "two in a pool": ["vg0", "vg2"], "all": ["vg0", "vg1", "vg2"]}


def ordinary_disk(minors: list[int]) -> list[str]:
    _group("vg0", _node(minors[0], "/dev/sda", f"/dev/block/7:{minors[0]}"))
    _group("vg1", _node(minors[1], "/dev/nvme0n1"))
    return _groups(device_filter=DeviceFilter(disks=("/dev/loop0",)))


def test_other_disks_are_seen(minors: list[int]) -> None:
    assert inside(ordinary_disk, minors) == ["vg0", "vg1"]


def only_named_disks(minors: list[int]) -> dict[str, Any]:
    named, other, further = (_node(minor, f"/dev/sd{number}") for number, minor in enumerate(minors))
    Path("/dev/disk/by-id").mkdir(parents=True)
    Path("/dev/disk/by-id/eui.0025").symlink_to(named)
    _group("vg0", named)
    _group("vg1", other)
    lvm = _lvm(device_filter=DeviceFilter(disks=("/dev/disk/by-id/eui.0025",), only_disks=True))
    seen = [vg.name for vg in lvm.report().vgs]
    made = _try(lambda: lvm.create("vg0", "a", extents=1, tags=["sl:v1"]))
    _lvm().extend_vg("vg0", [further])
    (lost,) = lvm.report().unreadable
    refused = _try(lambda: lvm.remove("vg0", "a"))
    (whole,) = (vg for vg in _lvm().report().vgs if vg.name == "vg0")
    kept = [lv.name for lv in whole.lvs]
    return {
        "seen": seen,
        "made": made,
        "why": lost.why,
        "refused": refused,
        "missing": whole.missing_disks,
        "kept": kept,
    }


def test_where_only_named_disks_count_no_other_is_seen_and_one_that_joined_the_group_is_not_recorded_as_gone(
    minors: list[int],
) -> None:
    found = inside(only_named_disks, minors)
    assert (found["seen"], found["made"]) == (["vg0"], "done")
    assert found["why"].startswith("/dev/sd2 belongs to volume group vg0, and the configuration keeps LVM away from it")
    assert found["refused"].startswith("Unavailable: lvremove of vg0/a was not begun: volume group vg0 ")
    assert (found["missing"], found["kept"]) == (0, ["a"])


def rejected_by_a_link(minors: list[int]) -> list[list[str]]:
    _group("vg0", _node(minors[0], "/dev/sda", "/dev/disk/by-path/ip-10.0.0.1-iscsi-1"))
    _group("vg1", _node(minors[1], "/dev/sdb"))
    lvm = _lvm(device_filter=DeviceFilter(rejected=("r|^/dev/disk/by-path/.*-iscsi-|",)))
    return [[vg.name for vg in lvm.report().vgs], [device.path for device in lvm._visible()]]


def test_a_disk_that_the_configuration_rejects_by_any_name_is_read_neither_by_lvm_nor_by_the_driver(
    minors: list[int],
) -> None:
    groups, disks = inside(rejected_by_a_link, minors)
    assert groups == ["vg1"]
    assert "/dev/sda" not in disks


# Groups that must not be used


def two_of_one_name(minors: list[int]) -> dict[str, Any]:
    _group("vg0", _node(minors[0], "/dev/sda"))
    _forget("/dev/sda")
    _group("vg0", _node(minors[1], "/dev/sdb"))
    _node(minors[0], "/dev/sda")
    report = _lvm().report()
    config = NodeConfig(pools=(Pool(name="main", vgs=("vg0",)),), default_pool="main")

    return {
        "uuids": [vg.uuid for vg in report.vgs],
        "said": _try(lambda: placement.targets(config, report, Parameters())),
    }


def test_of_two_groups_of_one_name_neither_is_used_and_both_are_told_apart(minors: list[int]) -> None:
    found = inside(two_of_one_name, minors)
    assert len(set(found["uuids"])) == 2
    assert found["said"].startswith("NoSpace: two volume groups have the name vg0")
    assert all(uuid in found["said"] for uuid in found["uuids"])


def a_stranger_of_the_name(minors: list[int]) -> dict[str, Any]:
    """A disk with the name of a group that is here, then with that of one that is gone; volumes are made and removed."""
    trust = Trust()
    lvm, config = _lvm(trust=trust), NodeConfig(pools=(Pool(name="main", vgs=("vg0", "vg1")),), default_pool="main")
    for name, minor in (("vg0", minors[0]), ("vg1", minors[1])):
        _group(name, _node(minor, f"/dev/sd-{name}"))
    own = {vg.name: vg.uuid for vg in lvm.report().vgs}
    _forget("/dev/sd-vg0", "/dev/sd-vg1")
    _group("vg0", _node(minors[2], "/dev/sd-strange"))
    _node(minors[0], "/dev/sd-vg0")
    beside = lvm.report()
    life = [
        _try(lambda: lvm.create("vg0", "pvc-1", extents=1, tags=["sl:v1"])),
        _try(lambda: lvm.change_tags("vg0", "pvc-1", remove=["sl:v1"], add=["sl:v2"])),
        str([(lv.name, lv.vg_uuid == own["vg0"]) for lv in lvm.report().lvs]),
        _try(lambda: lvm.remove("vg0", "pvc-1")),
    ]
    _forget("/dev/sd-vg0")
    alone = lvm.report()
    return {
        "pinned": trust.pins.uuids == own,
        "beside": [vg.uuid == own["vg0"] for vg in beside.vgs],
        "life": life,
        "alone": [vg.name for vg in alone.vgs],
        "said": _try(lambda: placement.targets(config, alone, Parameters())),
    }


def test_a_stranger_of_a_groups_name_takes_no_volume_and_stops_none(minors: list[int]) -> None:
    found = inside(a_stranger_of_the_name, minors)
    assert found["pinned"]
    assert found["beside"] == [True]
    assert found["life"] == ["done", "done", "[('pvc-1', True)]", "done"]
    assert found["alone"] == []
    assert found["said"].startswith("NoSpace: volume group vg0 on /dev/sd-strange (UUID ")
    assert "is not used: the group of this name that was used before has UUID" in found["said"]


def missing_disk(minors: list[int]) -> dict[str, Any]:
    _group("vg0", _node(minors[0], "/dev/sda"), _node(minors[1], "/dev/sdb"))
    _forget("/dev/sdb")
    (vg,) = _lvm().report().vgs
    return {
        "room": vg.usable_free_extents,
        "missing": vg.missing_disks,
        "lvcreate": _try(lambda: _lvm().create("vg0", "a", extents=1, tags=["sl:v1"])),
    }


def test_a_group_that_misses_a_disk_has_as_much_room_as_lvcreate_gives(minors: list[int]) -> None:
    found = inside(missing_disk, minors)
    assert (found["room"], found["missing"]) == (0, 1)
    assert found["lvcreate"].startswith("NoSpace: LVM does not allocate in volume group vg0: ")
    assert "PVs are missing" in found["lvcreate"]


# Disks of a pool


def _look(configured: str) -> pools.DeviceView:
    real = devices.resolved(configured)
    assert real is not None
    holds = filesystems.signature(LocalRunner(), real)
    return pools.DeviceView(configured=configured, real=real, holds=holds, number=devices.number(real))


def _bring_in(*configured: str) -> Report:
    """A start-up of the driver with these disks in a pool."""
    lvm = _lvm()
    pool = Pool(name="main", vgs=("vg0",), devices=configured)
    plan = pools.onboard(pool, lvm.report(), tuple(_look(name) for name in configured))
    make = {
        steps.CreateVG: lambda step: lvm.create_vg(step.vg, step.devices),
        steps.ExtendVG: lambda step: lvm.extend_vg(step.vg, step.devices),
    }
    apply(plan, make)
    return lvm.report()


def killed_between_pvcreate_and_vgcreate(minors: list[int]) -> list[str]:
    names = [_node(minor, f"/dev/sd{number}") for number, minor in enumerate(minors)]
    _lvm()._commit("vg0", ["pvcreate", names[0]], hints=True)
    (made,) = _bring_in(*names[:2]).vgs
    _lvm()._commit("vg0", ["pvcreate", names[2]], hints=True)
    (extended,) = _bring_in(*names).vgs
    return [str(len(made.pvs)), *sorted(pv.name for pv in extended.pvs)]


def test_disks_that_a_killed_start_has_labelled_come_into_the_group(minors: list[int]) -> None:
    assert inside(killed_between_pvcreate_and_vgcreate, minors) == ["2", "/dev/sd0", "/dev/sd1", "/dev/sd2"]


def disk_by_another_name(minors: list[int]) -> str:
    _group("vg0", _node(minors[0], "/dev/mapper-mpatha"))
    _node(minors[0], "/dev/dm-3", "/dev/disk/by-id/dm-uuid-mpath-1")
    return _try(lambda: _bring_in("/dev/disk/by-id/dm-uuid-mpath-1"))


def test_a_disk_of_the_group_is_no_stranger_under_another_name(minors: list[int]) -> None:
    assert inside(disk_by_another_name, minors) == "done"


def node_in_mapper(minors: list[int]) -> list[str]:
    named = DeviceFilter(disks=("/dev/mapper/disk",), only_disks=True)
    _node(minors[0], f"/dev/loop{minors[0]}")
    Path("/dev/mapper").mkdir(exist_ok=True)
    disk = _node(minors[0], "/dev/mapper/disk")
    _lvm(device_filter=named).create_vg("vg0", [disk])
    return _groups(device_filter=named)


def test_a_disk_is_found_by_its_node_in_mapper_where_no_udev_makes_links(minors: list[int]) -> None:
    assert inside(node_in_mapper, minors) == ["vg0"]


def disk_of_a_group_elsewhere(minors: list[int]) -> list[str]:
    _group("other", _node(minors[0], "/dev/sda"), _node(minors[1], "/dev/sdb"))
    return [_try(lambda: _bring_in("/dev/sda"))]


def test_a_disk_of_another_group_is_named_with_its_group_and_nobody_is_told_to_wipe_it(minors: list[int]) -> None:
    (said,) = inside(disk_of_a_group_elsewhere, minors)
    assert said.startswith("ForeignContent: pool main: /dev/sda is a disk of volume group other; it is left alone")
    assert "wipefs" not in said


if __name__ == "__main__":
    _own_places()
    print(json.dumps(globals()[sys.argv[1]](json.loads(sys.argv[2]))))
