"""What the real LVM refuses after the driver has looked, and which error of ours each becomes.

Scenarios run as those of `test_lvm_devices` do: each in a process of its own, with loop devices in a /dev of its own.
"""

import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from csi.core.command import Result
from csi.core.errors import CommandKilled
from csi.node.lvm.command import Lvm, _metadata_size
from csi.node.lvm.model import METADATA_MARGIN_BYTES
from tests.tools import test_lvm_devices as lab
from tests.tools.test_lvm_devices import inside, minors  # noqa: F401 - one is a fixture

TAGS = ("sl:v1", "sl:state=creating")


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    reason = lab._why_not()
    if reason is not None and os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


def _create(vg: str, extents: int = 1, **how: Any) -> str:
    return lab._try(lambda: lab._lvm().create(vg, "volume", extents=extents, tags=TAGS, **how))


def _volumes() -> list[str]:
    return [lv.name for lv in lab._lvm().report().lvs]


def allocations(minors: list[int]) -> dict[str, Any]:  # noqa: F811
    disks = [lab._node(minor, f"/dev/sd{number}") for number, minor in enumerate(minors)]
    lab._group("vg0", disks[0], disks[1])
    said = {
        "more than there is": _create("vg0", 1000),
        "more stripes than disks": _create("vg0", 3, stripes=3),
        "more on one disk than it has": _create("vg0", 20, pvs=disks[:1]),
    }
    lab._lvm()._commit("vg0", ["vgchange", "--alloc", "contiguous", "vg0"])
    said["contiguous, over two disks"] = _create("vg0", 20)
    lab._lvm()._commit("vg0", ["vgcreate", "--maxlogicalvolumes", "1", "one", disks[2]])
    lab._lvm().create("one", "first", extents=1, tags=TAGS)
    said["limit on volumes"] = _create("one")
    lab._lvm().remove("one", "first")
    # A copy of a disk of the group is plugged in.
    Path(disks[2]).write_bytes(Path(disks[0]).read_bytes())
    said["copied disk"] = _create("vg0")
    return {"said": said, "volumes": _volumes()}


def test_what_lvm_will_not_allocate_is_no_room_and_leaves_nothing(minors: list[int]) -> None:  # noqa: F811
    found = inside(allocations, minors)
    assert {what: said for what, said in found["said"].items() if not said.startswith("NoSpace: ")} == {}
    assert found["volumes"] == []


def full_metadata(minors: list[int]) -> dict[str, Any]:  # noqa: F811
    """Volumes with long tags until the area is full, whatever margin the driver keeps."""
    options = ["--physicalextentsize", "64k", "--metadatasize", "256k"]
    lab._lvm()._commit("vg0", ["vgcreate", *options, "vg0", lab._node(minors[0], "/dev/sda")])
    lvm = lab._lvm()
    tags = (*TAGS, "sl:created=1795656843", *(f"sl:long{number}={'x' * 900}" for number in range(6)))
    free, said = [], "done"
    while said == "done":
        (vg,) = lvm.report().vgs
        free.append(vg.metadata_free_bytes)
        said = lab._try(functools.partial(lvm.create, "vg0", f"v{len(free)}", extents=1, tags=tags))
    (vg,) = lvm.report().vgs
    mark = {"remove": TAGS[1:] + tags[2:3], "add": ("sl:state=deleting",)}
    names = [lv.name for lv in vg.lvs]
    deleted = [lab._try(functools.partial(lvm.change_tags, "vg0", name, **mark)) for name in names]
    deleted += [lab._try(functools.partial(lvm.remove, "vg0", name)) for name in names]
    return {"free": free, "said": said, "room": [vg.usable_free_extents, vg.free_extents], "deleted": deleted}


def test_a_full_metadata_area_is_no_room_and_every_volume_in_it_can_still_be_deleted(
    minors: list[int],  # noqa: F811
) -> None:
    found = inside(full_metadata, minors)
    assert found["said"].startswith("NoSpace: the metadata area of volume group vg0 is full")
    assert found["free"] == sorted(found["free"], reverse=True)
    assert found["free"][0] > METADATA_MARGIN_BYTES > found["free"][-1]
    assert found["room"][0] == 0 < found["room"][1]
    assert set(found["deleted"]) == {"done"}


def made_groups(minors: list[int]) -> list[Any]:  # noqa: F811
    lvm = lab._lvm()
    lvm.create_vg("vg0", [lab._node(minors[0], "/dev/sda")])
    lvm.extend_vg("vg0", [lab._node(minors[1], "/dev/sdb")])
    (vg,) = lvm.report().vgs
    return [len(vg.pvs), vg.metadata_free_bytes, _metadata_size(["/dev/sda"])]


def test_groups_that_the_driver_makes_have_an_area_by_the_size_of_their_disks(minors: list[int]) -> None:  # noqa: F811
    disks, free, size = inside(made_groups, minors)
    assert (disks, size) == (2, ["--metadatasize", "1024k"])
    assert free > 500 << 10


class EndedAfterwards(lab.WithoutDeviceMapper):
    """`lvcreate` does its work, and a signal ends it before it can say so."""

    def run(self, argv: Sequence[str], **how: Any) -> Result:
        done = super().run(argv, **how)
        if argv[1] == "lvcreate":
            raise CommandKilled(argv, 9)
        return done


def killed_when_done(minors: list[int]) -> dict[str, Any]:  # noqa: F811
    lab._group("vg0", lab._node(minors[0], "/dev/sda"))
    lvm = Lvm(EndedAfterwards(), udev=False, lock_file=Path("/run/lock-file"))
    return {"said": lab._try(lambda: lvm.create("vg0", "volume", extents=1, tags=TAGS)), "volumes": _volumes()}


def test_a_volume_that_a_killed_lvcreate_made_counts_as_made(minors: list[int]) -> None:  # noqa: F811
    assert inside(killed_when_done, minors) == {"said": "done", "volumes": ["volume"]}


if __name__ == "__main__":
    lab._own_places()
    print(json.dumps(globals()[sys.argv[1]](json.loads(sys.argv[2]))))
