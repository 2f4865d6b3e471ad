"""LVM's own faults: damaged and locked groups, settings of the host, a full metadata area, commands that say one thing and
do another; and how many processes a volume's life costs.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from lab.driver import MIB, Answer, Driver, lvs, mount_capability
from lab.node import Node, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

_MOUNT = mount_capability("ext4")
_SIZE = 32 * MIB
_PROGRAMS = "/usr/local/sbin"
_HOSTILE = (
    'report { list_item_separator=";" }',
    "report { binary_values_as_numeric=1 prefixes=1 compact_output=1 }",
    'report { output_format="json_std" } log { report_command_log=1 }',
    "this is { no configuration",
)


@dataclass(frozen=True, kw_only=True)
class World:
    """A node with two groups of the driver, one of somebody else, and a driver."""

    node: Node
    driver: Driver

    def create(self, name: str, pool: str = "one") -> Answer:
        """CreateVolume in a pool."""
        return self.driver.create(name, _SIZE, _MOUNT, pool=pool)

    def life(self, name: str, pool: str = "one") -> None:
        """A whole life, and nothing left of it."""
        volume = self.create(name, pool).ok()["volume"]
        self.driver.stage(volume, _MOUNT).ok()
        self.driver.publish(volume, _MOUNT).ok()
        self.driver.unpublish(name).ok()
        self.driver.unstage(name).ok()
        self.delete(name)

    def delete(self, name: str) -> None:
        """DeleteVolume until it is done; then the LV is gone."""
        wait_until(f"{name} is deleted", 60, lambda: _is_done(self.driver.delete(name)))
        left = self.node.run(["lvs", "--noheadings", "--nolocking", "-o", "lv_name"]).text.split()
        assert name not in left

    def capacity(self, pool: str) -> int:
        """What GetCapacity names."""
        return int(self.driver.call("GetCapacity", parameters={"pool": pool}).ok().get("available_capacity", 0))


def _is_done(answer: Answer) -> bool:
    assert answer.code in ("OK", "ABORTED", "UNAVAILABLE"), answer
    return answer.code == "OK"


@pytest.fixture(scope="module")
def world(node_kind: type[Node]) -> Iterator[World]:
    with node_kind((256 * MIB, 256 * MIB, 64 * MIB)) as node:
        for vg, disk in zip(("vgone", "vgtwo", "foreign"), node.disks, strict=True):
            node.run(["vgcreate", "-q", vg, disk])
        node.run(["mount", "-t", "tmpfs", "none", _PROGRAMS])
        driver = Driver(node, {"pools": [{"name": "one", "vgs": ["vgone"]}, {"name": "two", "vgs": ["vgtwo"]}]})
        driver.start()
        yield World(node=node, driver=driver)
        assert driver.stop() == 0


# Other people's groups


@contextmanager
def _locked(node: Node, vg: str) -> Iterator[None]:
    """Somebody holds LVM's lock of a group."""
    lock, held = f"/run/lock/lvm/V_{vg}", f"/run/held-{vg}"
    hold = f"exec 9>{lock}; flock 9; touch {held}; exec sleep 1000"
    pid = node.spawn(["sh", "-c", hold], f"{node.shared}/flock.log")
    wait_until("the lock is held", 10, lambda: node.exists(held))
    try:
        yield
    finally:
        node.kill(pid)
        node.run(["rm", held])
        node.wait(pid)


def test_a_foreign_group_whose_lock_is_held_stops_nobody(world: World) -> None:
    with _locked(world.node, "foreign"):
        world.life("pvc-beside-a-lock")


def test_of_two_groups_a_locked_one_does_not_stop_the_other(world: World) -> None:
    with _locked(world.node, "vgtwo"):
        world.life("pvc-beside-ours")
        assert world.capacity("one") > 0


def test_a_damaged_foreign_disk_stops_neither_calls_nor_a_start(world: World) -> None:
    node, disk = world.node, world.node.disks[2]
    whole = node.read(disk, 0, MIB)
    at = whole.find(b"extent_size", 4096 + 512)
    assert at > 0
    node.write(disk, b"\x00\x01\x02\x03", at)
    try:
        world.life("pvc-beside-damage")
        world.driver.kill()
        world.driver.start()
        world.life("pvc-after-a-start")
    finally:
        node.write(disk, whole, 0)


# Settings of the host


@pytest.mark.parametrize("line", _HOSTILE)
def test_no_setting_of_the_host_changes_what_is_done(world: World, line: str) -> None:
    before = world.node.read("/etc/lvm/lvm.conf")
    world.node.write("/etc/lvm/lvm.conf", line.encode())
    try:
        world.create("pvc-hostile").ok()
        assert world.driver.delete("pvc-hostile").code in ("OK", "ABORTED", "UNAVAILABLE")
        wait_until("it is deleted", 60, lambda: _is_done(world.driver.delete("pvc-hostile")))
    finally:
        world.node.write("/etc/lvm/lvm.conf", before)
    assert "pvc-hostile" not in lvs(world.node)


# A full metadata area


def test_a_full_metadata_area_is_no_room_and_does_not_stop_deletion(world: World) -> None:
    node = world.node
    volume = world.create("pvc-in-a-full-group", "two").ok()["volume"]
    world.create("pvc-unused", "two").ok()
    tags = [f"long{number}-{'x' * 900}" for number in range(640)]
    full = 0
    for start in range(0, len(tags), 20):
        words = [word for tag in tags[start : start + 20] for word in ("--addtag", tag)]
        full = node.run(["vgchange", "-q", *words, "vgtwo"], check=False).rc
        if full:
            break
    assert full, "the area is larger than this test thinks"
    assert world.capacity("two") == 0
    refused = world.create("pvc-too-many", "two")
    assert (refused.code, "metadata area is full" in refused.message) == ("RESOURCE_EXHAUSTED", True), refused
    world.driver.stage(volume, _MOUNT).ok()
    world.driver.unstage("pvc-in-a-full-group").ok()
    for name in ("pvc-in-a-full-group", "pvc-unused"):
        world.delete(name)
    node.run(["vgchange", "-q", *(word for tag in tags[:20] for word in ("--deltag", tag)), "vgtwo"])
    for start in range(20, len(tags), 20):
        words = [word for tag in tags[start : start + 20] for word in ("--deltag", tag)]
        node.run(["vgchange", "-q", *words, "vgtwo"], check=False)
    assert world.capacity("two") > 0


# Commands that say one thing and do another


@contextmanager
def _lvm_is(node: Node, script: str) -> Iterator[None]:
    """`lvm` is this script, in which `real` is the program."""
    real = node.run(["sh", "-c", "command -v lvm"]).text.strip()
    node.write(f"{_PROGRAMS}/lvm.new", f'#!/bin/sh\nreal() {{ {real} "$@"; }}\n{script}\n'.encode())
    node.run(["chmod", "755", f"{_PROGRAMS}/lvm.new"])
    node.run(["mv", f"{_PROGRAMS}/lvm.new", f"{_PROGRAMS}/lvm"])
    try:
        yield
    finally:
        node.run(["rm", f"{_PROGRAMS}/lvm"])


_FAILURES: dict[str, tuple[str, str, bool]] = {
    "killed when it was done": ('real "$@"; kill -9 $$', "OK", True),
    "killed before it began": ("kill -9 $$", "UNAVAILABLE", False),
    "no room after the look": (
        "echo 'Volume group vgone has insufficient free space (1 extents): 8 required.' >&2; exit 5",
        "RESOURCE_EXHAUSTED",
        False,
    ),
    "says that it did and did nothing": ("exit 0", "INTERNAL", False),
}
"""What `lvcreate` does, the answer, and whether there is a volume then."""


@pytest.mark.parametrize("how", _FAILURES)
def test_a_failed_lvcreate_leaves_a_volume_only_when_the_answer_says_so(world: World, how: str) -> None:
    script, code, made = _FAILURES[how]
    with _lvm_is(world.node, f'if [ "$1" = lvcreate ]; then {script}; exit; fi; real "$@"'):
        answer = world.create("pvc-odd")
    assert (answer.code, "pvc-odd" in lvs(world.node)) == (code, made), answer
    world.delete("pvc-odd")


def test_a_removal_that_did_nothing_is_not_called_done(world: World) -> None:
    world.create("pvc-stays").ok()
    with _lvm_is(world.node, '[ "$1" = lvremove ] || real "$@"'):
        assert world.driver.delete("pvc-stays").code != "OK"
        assert world.driver.delete("pvc-stays").code != "OK"
    assert "pvc-stays" in lvs(world.node)
    world.delete("pvc-stays")


# What a life costs


def test_a_look_costs_no_process_and_a_change_one(world: World) -> None:
    driver, node = world.driver, world.node
    volume = {"volume_id": "pvc-counted"}
    world.create("pvc-warm").ok()
    world.delete("pvc-warm")
    calls: dict[str, Callable[[], object]] = {
        "GetCapacity": lambda: world.capacity("one"),
        "CreateVolume": lambda: world.create("pvc-counted").ok(),
        "CreateVolume again": lambda: world.create("pvc-counted").ok(),
        "first stage": lambda: driver.stage(volume, _MOUNT).ok(),
        "stage again": lambda: driver.stage(volume, _MOUNT).ok(),
        "publish": lambda: driver.publish(volume, _MOUNT).ok(),
        "unpublish": lambda: driver.unpublish("pvc-counted").ok(),
        "unstage": lambda: driver.unstage("pvc-counted").ok(),
        "later stage": lambda: driver.stage(volume, _MOUNT).ok(),
        "unstage later": lambda: driver.unstage("pvc-counted").ok(),
    }
    node.call("lab.exits:start")
    counts, before = {}, 0
    for what, call in calls.items():
        call()
        seen = len(node.call("lab.exits:children", parent=driver.pid, program="lvm"))
        counts[what], before = seen - before, seen
    world.delete("pvc-counted")
    print(
        json.dumps(counts), "delete:", len(node.call("lab.exits:children", parent=driver.pid, program="lvm")) - before
    )
    assert counts == {
        "GetCapacity": 0,
        "CreateVolume": 1,
        "CreateVolume again": 0,
        "first stage": 2,
        "stage again": 0,
        "publish": 0,
        "unpublish": 0,
        "unstage": 1,
        "later stage": 1,
        "unstage later": 1,
    }


def test_what_the_administrator_changes_is_seen_at_once_and_without_a_process(world: World) -> None:
    before = world.capacity("two")
    world.node.call("lab.exits:start")
    world.node.run(["lvcreate", "-q", "--yes", "--name", "admins", "--extents", "4", "--activate", "n", "-Zn", "vgtwo"])
    assert world.capacity("two") == before - 4 * 4 * MIB
    world.node.run(["lvremove", "-q", "--yes", "vgtwo/admins"])
    assert world.capacity("two") == before
    assert world.node.call("lab.exits:children", parent=world.driver.pid, program="lvm") == []
