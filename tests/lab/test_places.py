"""Groups that LVM would not allocate in, and strangers that have the name of a group: the next group takes the volume."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.driver import MIB, Answer, Driver, mount_capability
from lab.node import Node, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

_MOUNT = mount_capability("ext4")
_SIZE = 16 * MIB


@dataclass(frozen=True, kw_only=True)
class World:
    """A pool of two groups: `wide`, which is tried first as it has more room, and `narrow`. One disk is spare."""

    node: Node
    driver: Driver

    def create(self, name: str, size: int = _SIZE, **parameters: str) -> Answer:
        """CreateVolume in the pool, or where the parameters say."""
        return self.driver.create(name, size, _MOUNT, **(parameters or {"pool": "main"}))

    def lands(self, name: str) -> str:
        """The group that a new volume goes to; the volume is gone again afterwards."""
        self.create(name).ok()
        found = self.node.run(["lvs", "--noheadings", "-o", "vg_name", "--select", f"lv_name={name}"]).text.strip()
        self.delete(name)
        return found

    def delete(self, name: str) -> None:
        """DeleteVolume until it is done."""
        wait_until(f"{name} is deleted", 60, lambda: self.driver.delete(name).code == "OK")

    def room(self, vg: str) -> int:
        """The largest volume that GetCapacity names for a group."""
        answer = self.driver.call("GetCapacity", parameters={"vgName": vg}).ok()
        return int(answer.get("maximum_volume_size", {}).get("value", 0) if answer.get("available_capacity") else 0)

    def lvm(self, *argv: str) -> None:
        """A command of the operator's."""
        self.node.run([*argv])

    @property
    def spare(self) -> str:
        """A disk of nobody."""
        return self.node.disks[3]


@pytest.fixture(scope="module")
def world(node_kind: type[Node]) -> Iterator[World]:
    with node_kind((128 * MIB, 64 * MIB, 64 * MIB, 128 * MIB)) as node:
        for vg, disk in zip(("wide", "narrow", "gone"), node.disks[:3], strict=True):
            node.run(["vgcreate", "-q", vg, disk])
        driver = Driver(
            node, {"pools": [{"name": "main", "vgs": ["wide", "narrow"]}, {"name": "late", "vgs": ["gone"]}]}
        )
        driver.start()
        yield World(node=node, driver=driver)
        assert driver.stop() == 0


def test_a_group_at_its_limit_of_volumes_has_no_room_and_the_next_one_takes_the_volume(world: World) -> None:
    assert (world.lands("pvc-wide"), world.room("wide") > 0) == ("wide", True)
    world.lvm("vgchange", "-q", "--logicalvolume", "1", "wide")
    world.lvm("lvcreate", "-q", "-y", "-an", "-Zn", "-Wn", "-l1", "-n", "only", "wide")
    assert world.room("wide") == 0
    assert world.lands("pvc-limit") == "narrow"
    refused = world.create("pvc-named", vgName="wide")
    assert (refused.code, "no more than 1 volumes" in refused.message) == ("RESOURCE_EXHAUSTED", True), refused
    world.lvm("lvremove", "-q", "-y", "wide/only")
    world.lvm("vgchange", "-q", "--logicalvolume", "0", "wide")


def test_under_a_contiguous_policy_the_size_that_is_named_can_be_made_and_more_goes_elsewhere(world: World) -> None:
    for name in ("a", "b", "c", "d", "e"):
        world.lvm("lvcreate", "-q", "-y", "-an", "-Zn", "-Wn", "-l6", "-n", name, "wide")
    world.lvm("lvremove", "-q", "-y", "wide/b", "wide/d")
    world.lvm("vgchange", "-q", "--alloc", "contiguous", "wide")
    named = world.room("wide")
    assert 0 < named < 48 * MIB
    world.create("pvc-named", named, vgName="wide").ok()
    world.delete("pvc-named")
    world.create("pvc-more", named + 4 * MIB).ok()
    held = world.node.run(["lvs", "--noheadings", "-o", "vg_name", "--select", "lv_name=pvc-more"]).text.strip()
    assert held == "narrow"
    world.delete("pvc-more")
    world.lvm("lvremove", "-q", "-y", "wide/a", "wide/c", "wide/e")
    world.lvm("vgchange", "-q", "--alloc", "normal", "wide")


def test_a_write_protected_disk_closes_its_group_alone(world: World) -> None:
    world.lvm("blockdev", "--setro", world.node.disks[0])
    assert world.room("wide") == 0
    assert world.lands("pvc-protected") == "narrow"
    refused = world.create("pvc-named", vgName="wide")
    assert (refused.code, "write-protected" in refused.message) == ("RESOURCE_EXHAUSTED", True), refused
    world.lvm("blockdev", "--setrw", world.node.disks[0])
    assert world.lands("pvc-again") == "wide"


def test_a_copy_of_its_disk_closes_a_group_alone(world: World) -> None:
    world.lvm("dd", f"if={world.node.disks[0]}", f"of={world.spare}", "bs=1M", "count=16", "conv=fsync", "status=none")
    assert world.room("wide") == 0
    assert world.lands("pvc-copied") == "narrow"
    refused = world.create("pvc-named", vgName="wide")
    assert (refused.code, "a copy of its disk" in refused.message) == ("RESOURCE_EXHAUSTED", True), refused
    _blank(world, world.spare)
    assert world.lands("pvc-alone") == "wide"


def test_a_stranger_with_the_name_of_a_group_takes_no_volume_and_stops_none(world: World) -> None:
    _plant(world, "narrow", beside=world.node.disks[1])
    volume = world.create("pvc-life", vgName="narrow").ok()["volume"]
    world.driver.stage(volume, _MOUNT).ok()
    world.driver.publish(volume, _MOUNT).ok()
    world.driver.unpublish("pvc-life").ok()
    world.driver.unstage("pvc-life").ok()
    world.delete("pvc-life")
    assert _volumes_on(world, world.spare) == []
    _blank(world, world.spare)


def test_a_stranger_with_the_name_of_a_group_that_went_away_takes_no_volume(world: World) -> None:
    assert world.room("gone") > 0
    _blank(world, world.node.disks[2])
    _plant(world, "gone", beside=world.node.disks[2])
    assert world.room("gone") == 0
    refused = world.create("pvc-stranger", pool="late")
    assert (refused.code, "is not used: the group of this name" in refused.message) == ("RESOURCE_EXHAUSTED", True)
    assert _volumes_on(world, world.spare) == []


def _plant(world: World, vg: str, *, beside: str) -> None:
    """What a tenant writes to a disk that another driver attached: a label with this name."""
    blind = json.dumps([f"r|^{beside}$|"])
    world.lvm("vgcreate", "-q", "--config", f"devices/global_filter={blind}", vg, world.spare)


def _volumes_on(world: World, disk: str) -> list[str]:
    others = json.dumps([f"a|^{disk}$|", "r|.*|"])
    report = world.node.run(["lvs", "--noheadings", "-o", "lv_name", "--config", f"devices/global_filter={others}"])
    return report.text.split()


def _blank(world: World, disk: str) -> None:
    world.lvm("dd", "if=/dev/zero", f"of={disk}", "bs=1M", "count=16", "conv=fsync", "status=none")
