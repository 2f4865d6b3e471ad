"""Seven hundred and fifty volumes on one node: a full metadata area is no dead end, and two hundred deletions at once stop
nobody, run no more LVM than there are groups, and are all done though the driver is killed among them.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from lab import crowd, exits
from lab.driver import MIB, Answer, Driver, lvs, mount_capability, mounts_below, until_ok
from lab.node import Node, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

_CAPABILITY = mount_capability("ext4")
_SIZE = 8 * MIB
_POD_SIZE = 16 * MIB
_CROWDED, _BESIDE = 550, 200
"""Volumes in the two groups: what LVM's commands take grows with their group."""
_DELETED = (50, 150)
_STEPS = (256, 64, 16, 4, 1)
_WANTED_SECONDS, _PROBE_SECONDS = 1.0, 10.0
"""What a probe takes at most on a quiet machine, which is shown; and when a liveness probe gives up, which is required."""
_GROUPS = ("vgcrowd", "vgother")
_REPEATED = ("ABORTED", "UNAVAILABLE")
"""What kubelet and the provisioner call again, and no error of anybody's."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A node with a crowded group, another one, and their driver."""

    node: Node
    driver: Driver
    crowded: list[str]
    beside: list[str]
    """The volumes of the two groups, none of which was ever used."""


@pytest.fixture(scope="module")
def world(node_kind: type[Node]) -> Iterator[World]:
    with node_kind((12 * 1024 * MIB, 4 * 1024 * MIB)) as node:
        for group, disk in zip(_GROUPS, node.disks, strict=True):
            node.run(["vgcreate", "-q", group, disk])
        driver = Driver(node, {"pools": [{"name": group, "vgs": [group]} for group in _GROUPS]})
        driver.start()
        names = [f"pvc-5f1c7e0a-93d4-4b7e-8c55-{number:012}" for number in range(_CROWDED + _BESIDE)]
        parts = names[:_CROWDED], names[_CROWDED:]
        for group, part in zip(_GROUPS, parts, strict=True):
            driver.create(part[0], _SIZE, _CAPABILITY, pool=group).ok()
            crowd.multiply(node, group, part[0], part[1:])
        yield World(node=node, driver=driver, crowded=parts[0], beside=parts[1])
        assert driver.stop() == 0


def _show(driver: Driver, name: str, group: str) -> float:
    """A pod's volume on its way in and out; the seconds of the slowest call."""
    volume = {"volume_id": name}
    calls = (
        lambda: driver.create(name, _POD_SIZE, _CAPABILITY, pool=group),
        lambda: driver.stage(volume, _CAPABILITY),
        lambda: driver.publish(volume, _CAPABILITY),
        lambda: driver.unpublish(name),
        lambda: driver.unstage(name),
    )
    return max(map(_seconds_until_through, calls))


def _seconds_until_through(call: Callable[[], Answer]) -> float:
    """Repeated as kubelet does, on its codes alone: on a busy machine a disk may seem silent for a moment."""
    tries: list[Answer] = []

    def is_over() -> bool:
        tries.append(call())
        return tries[-1].code not in _REPEATED

    wait_until("a pod's call", 120, is_over)
    tries[-1].ok()
    return sum(answer.seconds for answer in tries)


def test_two_hundred_deletions_at_once_stop_nobody_and_outlive_a_kill(world: World) -> None:
    node, driver = world.node, world.driver
    doomed = world.crowded[-_DELETED[0] :] + world.beside[-_DELETED[1] :]
    kept = set(world.crowded + world.beside) - set(doomed)
    node.call("lab.exits:start")
    node.call("lab.pulse:start", socket=driver.socket)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(_delete_all, driver, doomed)
        slowest = [_show(driver, "pvc-pod-0", "vgcrowd")]
        wait_until("some deletions", 300, lambda: len(_lvm_of(driver)) > len(doomed) // 4)
        ran = _lvm_of(driver)
        driver.kill()
        driver.start()
        slowest.append(_show(driver, "pvc-pod-1", "vgother"))
        rounds = deleted.result()
    probes = node.call("lab.pulse:stop", socket=driver.socket)
    ran_after = _lvm_of(driver)
    most = max(exits.at_a_time(ran), exits.at_a_time(ran_after))
    print(
        f"{len(doomed)} deletions of {len(doomed) + len(kept)} in {time.monotonic() - began:.0f} s and {rounds} rounds, "
        f"{len(ran) + len(ran_after)} LVM processes, {most} at a time; {len(probes)} probes, "
        f"{sum(probe > _WANTED_SECONDS for probe in probes)} over {_WANTED_SECONDS:g} s, slowest {max(probes):.2f} s; "
        f"a pod's slowest call {max(slowest):.2f} s"
    )
    assert max(probes) <= _PROBE_SECONDS
    assert most <= len(_GROUPS)
    left = set(lvs(node))
    assert not left & set(doomed)
    assert left >= kept
    assert mounts_below(node) == []
    for number in range(2):
        until_ok(lambda number=number: driver.delete(f"pvc-pod-{number}"), f"deletion of pvc-pod-{number}")


def _lvm_of(driver: Driver) -> list[dict[str, Any]]:
    """LVM commands of this process of the driver that have ended. To look by LVM itself would load the node as they do."""
    found: list[dict[str, Any]] = driver.node.call("lab.exits:children", parent=driver.pid, program="lvm")
    return found


def _delete_all(driver: Driver, names: list[str]) -> int:
    """As the provisioner does it: all at once, and those again that did not get through. Answers the rounds it took."""
    left, rounds = names, 0
    while left:
        rounds += 1
        answers = driver.many("DeleteVolume", [{"volume_id": name} for name in left])
        bad = [answer for answer in answers if answer.code not in ("OK", *_REPEATED)]
        assert not bad, bad[0]
        left = [name for name, answer in zip(left, answers, strict=True) if answer.code != "OK"]
        time.sleep(0.5)
    return rounds


def test_a_full_metadata_area_is_no_room_and_no_dead_end(world: World) -> None:
    """The driver's own creations stop before it is full; an administrator fills it to the last byte."""
    node, driver = world.node, world.driver
    shown = node.run(["vgs", "--noheadings", "-o", "lv_count,vg_mda_free", "vgcrowd"]).text.split()
    print(f"volumes and free metadata: {' '.join(shown)}")
    _fill_up(node)
    refused = driver.create("pvc-more", _SIZE, _CAPABILITY, pool="vgcrowd")
    assert refused.code == "RESOURCE_EXHAUSTED", refused
    assert "metadata" in refused.message
    capacity = driver.call("GetCapacity", parameters={"pool": "vgcrowd"}).ok()
    assert int(capacity.get("available_capacity", 0)) == 0, "room is named that no volume can have"
    assert "pvc-more" not in lvs(node)
    first, second = world.crowded[:2]
    staged = driver.stage({"volume_id": first}, _CAPABILITY)
    assert staged.code == "OK" or (staged.code == "RESOURCE_EXHAUSTED" and "metadata" in staged.message), staged
    until_ok(lambda: driver.unstage(first), "unstage")
    for name in (first, second):
        until_ok(lambda name=name: driver.delete(name), f"deletion of {name} from a full group")
        assert name not in lvs(node)


def _fill_up(node: Node) -> None:
    """LVs of an administrator's own, more and more until LVM refuses a single one."""
    node.run(["lvcreate", "-q", "-y", "-an", "-Zn", "-Wn", "-l1", "-n", "filler", "vgcrowd"])
    numbers = itertools.count(1)
    for step in _STEPS:
        with contextlib.suppress(crowd.GroupFull):
            while True:
                crowd.multiply(node, "vgcrowd", "filler", [f"filler{next(numbers)}" for _ in range(step)])
    refused = node.run(["lvcreate", "-q", "-y", "-an", "-Zn", "-Wn", "-l1", "-n", "last", "vgcrowd"], check=False)
    print(f"{len(lvs(node))} volumes; LVM refuses the next: {refused.stderr.decode(errors='replace').strip()}")
    assert refused.rc != 0
