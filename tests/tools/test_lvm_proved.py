"""The driver's own look at disks and the real LVM's report: equal after every change, without a process while they can be.

Scenarios run as those of `test_lvm_devices` do: each in a process of its own, with loop devices in a /dev of its own.
"""

import functools
import json
import os
import random
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csi.core.command import Result
from csi.node.lvm import report as lvm_report
from csi.node.lvm.command import _REPORT, Lvm
from csi.node.lvm.model import Report, VolumeGroup
from tests.tools import test_lvm_devices as lab
from tests.tools.test_lvm_devices import inside, minors  # noqa: F401 - one is a fixture


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    reason = lab._why_not()
    if reason is not None and os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


class Counting(lab.WithoutDeviceMapper):
    """Remembers the verbs that ran, but for the look at LVM itself that comes first, once a process."""

    def __init__(self) -> None:
        super().__init__()
        self.verbs: list[str] = []

    def run(self, argv: Sequence[str], **how: Any) -> Result:
        if argv[1] not in ("lvmconfig", "version"):
            self.verbs.append(argv[1])
        return super().run(argv, **how)


def _counting() -> tuple[Lvm, list[str]]:
    runner = Counting()
    return Lvm(runner, udev=False, lock_file=Path("/run/lock-file")), runner.verbs


def _by_lvm() -> Report:
    """What LVM itself shows, in the same words."""
    return lvm_report.parse(*lab._lvm()._process.said(_REPORT, 60.0))


def _sorted(vgs: Sequence[VolumeGroup]) -> list[VolumeGroup]:
    """Groups without their room for metadata, which LVM and the driver round in other ways."""
    return sorted((replace(vg, metadata_free_bytes=0) for vg in vgs), key=lambda vg: vg.name)


def _lvm_as_admin(*argv: str) -> None:
    """A command of the administrator, which the driver knows nothing of."""
    lab._lvm()._process.run(list(argv), 60.0)


# How many processes


def one_life(minors: list[int]) -> dict[str, Any]:  # noqa: F811
    lab._group("vg0", lab._node(minors[0], "/dev/sda"), lab._node(minors[1], "/dev/sdb"))
    lvm, verbs = _counting()
    counts = {}

    def count(what: str) -> None:
        counts[what] = list(verbs)
        verbs.clear()

    lvm.report()
    count("first look")
    for _ in range(20):
        lvm.report()
    count("20 looks")
    lvm.create("vg0", "volume", extents=20, tags=("sl:v1", "sl:state=creating"))
    lvm.report()
    count("create and look")
    lvm.change_tags("vg0", "volume", remove=("sl:state=creating",), add=("sl:state=ready",))
    seen = [[lv.name, sorted(lv.tags)] for lv in lvm.report().lvs]
    count("tags and look")
    _lvm_as_admin("lvcreate", "--name", "admins", "--extents", "1", "--zero", "n", "--activate", "n", "vg0")
    names = [lv.name for lv in lvm.report().lvs]
    count("look after a change of another")
    lvm.remove("vg0", "volume")
    left = [lv.name for lv in lvm.report().lvs]
    count("remove and look")
    return {"counts": counts, "seen": seen, "names": names, "left": left}


def test_only_changes_and_a_groups_first_look_are_processes(minors: list[int]) -> None:  # noqa: F811
    found = inside(one_life, minors)
    assert found["counts"] == {
        "first look": ["fullreport"],
        "20 looks": [],
        "create and look": ["lvcreate"],
        "tags and look": ["lvchange"],
        "look after a change of another": [],
        "remove and look": ["lvremove"],
    }
    assert found["seen"] == [["volume", ["sl:state=ready", "sl:v1"]]]
    assert found["names"] == ["admins", "volume"]
    assert found["left"] == ["admins"]


# The same as LVM


def many_groups(minors: list[int]) -> dict[str, Any]:  # noqa: F811
    """Random changes of groups of odd forms; after each one both looks are compared."""
    disks = [lab._node(minor, f"/dev/sd{number}") for number, minor in enumerate(minors)]
    chance = random.Random(7)
    lvm, verbs = _counting()
    differences = []
    for number, options in enumerate(
        (
            [],
            ["--physicalextentsize", "64k"],
            ["--alloc", "cling", "--addtag", "a-tag", "--maxlogicalvolumes", "40"],
            ["--pvmetadatacopies", "2", "--metadatasize", "2m"],
            ["--dataalignment", "1m", "--setautoactivation", "n"],
            ["--vgmetadatacopies", "1"],
        )
    ):
        vg = f"group-{number}"
        _lvm_as_admin("vgcreate", *options, vg, *disks)
        for step in range(20):
            name = f"v.{step}_x"
            made = [lv.name for lv in lvm.report().lvs]
            if step == 9:
                _lvm_as_admin("vgchange", "--alloc", "contiguous", "--logicalvolume", "39", vg)
            elif made and chance.random() < 0.3:
                lvm.remove(vg, chance.choice(made))
            elif made and chance.random() < 0.2:
                _lvm_as_admin("lvchange", "--setautoactivation", "n", f"{vg}/{chance.choice(made)}")
            elif made and chance.random() < 0.3:
                lvm.change_tags(vg, chance.choice(made), remove=("t",), add=(f"u={step}", "x&y#!"))
            elif made and chance.random() < 0.3:
                extend = ["lvextend", "--extents", "+1", f"{vg}/{chance.choice(made)}", *chance.sample(disks, 1)]
                lab._try(functools.partial(_lvm_as_admin, *extend))
            else:
                stripes = chance.choice((1, 1, 2, 3))
                striped = {"stripes": stripes, "stripe_kib": 64 if stripes > 1 else None}
                lab._try(functools.partial(lvm.create, vg, name, extents=stripes, tags=("t",), **striped))
            if _sorted(lvm.report().vgs) != _sorted(_by_lvm().vgs):
                differences.append([vg, step, str(lvm.report().vgs), str(_by_lvm().vgs)])
        for lv in lvm.report().lvs:
            lvm.remove(vg, lv.name)
        _lvm_as_admin("vgremove", vg)
        _lvm_as_admin("pvremove", *disks)
    return {"differences": differences[:2], "looks": verbs.count("fullreport"), "made": verbs.count("lvcreate")}


def test_after_every_change_the_driver_sees_what_lvm_sees(minors: list[int]) -> None:  # noqa: F811
    found = inside(many_groups, minors)
    assert found["differences"] == []
    assert found["looks"] == 7, "one a group, when it is first seen, and one more where some of its disks hold no text"
    assert found["made"] > 20


# Many at once


class Crowded(Counting):
    """Notes how many commands run at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self._lock = threading.Lock()

    def run(self, argv: Sequence[str], **how: Any) -> Result:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return super().run(argv, **how)
        finally:
            with self._lock:
                self.now -= 1


def crowd(minors: list[int]) -> dict[str, Any]:  # noqa: F811
    """Ten callers in two groups, and two that only look."""
    groups = ("vg0", "vg1")
    disks = [lab._node(minor, f"/dev/sd{number}") for number, minor in enumerate(minors)]
    lab._group("vg0", *disks[:2])
    lab._group("vg1", disks[2])
    runner = Crowded()
    lvm = Lvm(runner, udev=False, lock_file=Path("/run/lock-file"))
    lvm.report()
    runner.verbs.clear()
    runner.most = 0
    wrong: list[str] = []

    def call(number: int) -> None:
        vg = groups[number % 2]
        for step in range(3):
            name = f"v{number}-{step}"
            said = [
                lab._try(lambda: lvm.create(vg, name, extents=1, tags=("a",))),  # noqa: B023
                lab._try(lambda: lvm.change_tags(vg, name, remove=("a",), add=("b",))),  # noqa: B023
            ]
            if step:
                said.append(lab._try(lambda: lvm.remove(vg, name)))  # noqa: B023
            wrong.extend(text for text in said if text != "done")

    def look() -> None:
        while any(caller.is_alive() for caller in callers):
            wrong.extend(group.why for group in lvm.report().unreadable)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(10)]
    readers = [threading.Thread(target=look) for _ in range(2)]
    for thread in (*callers, *readers):
        thread.start()
    for thread in (*callers, *readers):
        thread.join()
    return {
        "wrong": wrong,
        "left": sorted(lv.name for lv in lvm.report().lvs),
        "same": _sorted(lvm.report().vgs) == _sorted(_by_lvm().vgs),
        "most": runner.most,
        "looks": runner.verbs.count("fullreport"),
        "changes": len(runner.verbs) - runner.verbs.count("fullreport"),
    }


def test_a_crowd_runs_one_command_a_group_at_a_time_and_nobody_looks_by_a_process(
    minors: list[int],  # noqa: F811
) -> None:
    found = inside(crowd, minors)
    assert found["wrong"] == []
    assert found["left"] == sorted(f"v{number}-0" for number in range(10))
    assert found["same"]
    assert (found["most"], found["looks"], found["changes"]) == (2, 0, 10 * (3 + 3 + 2))


if __name__ == "__main__":
    lab._own_places()
    print(json.dumps(globals()[sys.argv[1]](json.loads(sys.argv[2]))))
