"""What is named as room is what the real LVM allocates, and a group in which it allocates nothing names none.

Scenarios run as those of `test_lvm_devices` do: each in a process of its own, with loop devices in a /dev of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from csi.node import observe
from csi.node.lvm.layout import Layout, Linear, Striped
from csi.node.lvm.model import AllocationPolicy
from csi.node.plan.target import Target
from csi.node.volume import Parameters
from tests.tools import test_lvm_devices as lab
from tests.tools.test_lvm_devices import inside, minors  # noqa: F401 - one is a fixture

TAGS = ("sl:v1", "sl:state=creating")
LAYOUTS: Mapping[str, tuple[Layout, tuple[int, ...]]] = {
    "linear": (Linear(), (1,)),
    "two stripes": (Striped(count=2), (2,)),
    "striped": (Striped(), (2, 3)),
}
"""Each with the numbers of stripes that it means on three disks."""
POLICIES = (AllocationPolicy.NORMAL, AllocationPolicy.CONTIGUOUS, AllocationPolicy.CLING)


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    reason = lab._why_not()
    if reason is not None and os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


def target(vg: str = "vg0") -> Target:
    """The group as CreateVolume and GetCapacity see it."""
    report = lab._lvm().report()
    found = report.vg(vg)
    assert found is not None
    return Target(vg=found, now=observe.conditions(report))


def create(target: Target, layout: Layout, size_bytes: int) -> str:
    """`done`, or what was said. The volume is gone again afterwards."""
    place = target.fit(Parameters(layout=layout), size_bytes)
    if place is None:
        return "does not fit"
    stripes = (place.layout.count or 0) if isinstance(place.layout, Striped) else 1
    said = _create(place.extents, stripes, place.pvs)
    if said == "done":
        lab._lvm().remove("vg0", "volume")
    return said


def _create(extents: int, stripes: int = 1, pvs: tuple[str, ...] = (), vg: str = "vg0") -> str:
    return lab._try(lambda: lab._lvm().create(vg, "volume", extents=extents, tags=TAGS, stripes=stripes, pvs=pvs))


def _lay_out(disk: str, *lengths: int) -> None:
    """Volumes of these many extents, one after the other; every second one is taken away again."""
    for number, length in enumerate(lengths):
        lab._lvm().create("vg0", f"{Path(disk).name}-{number}", extents=length, tags=("filler",), pvs=(disk,))
    for number in range(0, len(lengths), 2):
        lab._lvm().remove("vg0", f"{Path(disk).name}-{number}")


def largest_of_each(minors: list[int]) -> dict[str, list[str]]:  # noqa: F811
    """Disks of 15 extents. Free are 9 in runs of 3 and 6; 11 in runs of 5, 4 and 2; 8 in one run of 8."""
    disks = [lab._node(minor, f"/dev/sd{number}") for number, minor in enumerate(minors)]
    lab._group("vg0", *disks)
    _lay_out(disks[0], 3, 6)
    _lay_out(disks[1], 5, 2, 4, 2)
    lab._lvm().create("vg0", "filler", extents=7, tags=("filler",), pvs=(disks[2],))
    said = {}
    for policy in POLICIES:
        if policy is not AllocationPolicy.NORMAL:
            lab._lvm()._change("vg0", ["vgchange", "--alloc", policy, "vg0"])
        for name, (layout, counts) in LAYOUTS.items():
            found = target()
            largest = found.largest(Parameters(layout=layout))
            extents = largest // found.vg.extent_bytes
            more = [_create(extents + 3, stripes) for stripes in counts]
            said[f"{policy}, {name}"] = [str(extents), create(found, layout, largest), *(one[:7] for one in more)]
    return said


def test_the_largest_size_of_each_policy_and_layout_is_allocated_and_more_is_not(minors: list[int]) -> None:  # noqa: F811
    found = inside(largest_of_each, minors)
    assert {what: said[0] for what, said in found.items()} == {
        "normal, linear": "28",
        "normal, two stripes": "18",
        "normal, striped": "24",
        "contiguous, linear": "8",
        "contiguous, two stripes": "12",
        "contiguous, striped": "15",
        "cling, linear": "11",
        "cling, two stripes": "18",
        "cling, striped": "24",
    }
    assert {what: said[1:] for what, said in found.items() if said[1] != "done" or "done" in said[2:]} == {}


def closed(minors: list[int]) -> dict[str, Any]:  # noqa: F811
    """Each trouble: the room that is named with it, what is said, and what LVM does."""
    disks = [lab._node(minor, f"/dev/sd{number}") for number, minor in enumerate(minors)]
    lab._group("vg0", disks[0], disks[1])
    found = {"nothing wrong": _seen()}
    lab._lvm()._change("vg0", ["vgchange", "--logicalvolume", "1", "vg0"])
    lab._lvm().create("vg0", "first", extents=1, tags=TAGS)
    found["limit on volumes"] = _seen()
    lab._lvm().remove("vg0", "first")
    found["limit not reached"] = _seen()
    subprocess.run(["blockdev", "--setro", disks[1]], check=True, env={"PATH": lab.TOOLS})
    found["write-protected disk"] = _seen()
    subprocess.run(["blockdev", "--setrw", disks[1]], check=True, env={"PATH": lab.TOOLS})
    Path(disks[2]).write_bytes(Path(disks[0]).read_bytes())
    found["copied disk"] = _seen()
    return found


def _seen() -> list[str]:
    seen = target()
    said = _create(1)
    if said == "done":
        lab._lvm().remove("vg0", "volume")
    return ["room" if seen.room else "no room", seen.closed, said.partition(":")[0]]


def test_a_group_in_which_lvm_allocates_nothing_names_no_room_and_says_why(minors: list[int]) -> None:  # noqa: F811
    found = inside(closed, minors)
    room, none = ["room", "", "done"], ["no room", "NoSpace"]
    assert found.pop("nothing wrong") == found.pop("limit not reached") == room
    assert {what: [said[0], said[2]] for what, said in found.items()} == dict.fromkeys(found, none)
    assert "no more than 1 volumes" in found["limit on volumes"][1]
    assert "disk /dev/sd1 is write-protected" in found["write-protected disk"][1]
    assert "a copy of its disk /dev/sd" in found["copied disk"][1]


if __name__ == "__main__":
    lab._own_places()
    print(json.dumps(globals()[sys.argv[1]](json.loads(sys.argv[2]))))
