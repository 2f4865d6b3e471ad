"""Create is idempotent by name and never takes what is not its own; delete wipes as promised, never what is in use."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import pytest

from csi.core.errors import AlreadyExists, ForeignContent, NoSpace, Refused, Unavailable
from csi.node import parameters
from csi.node.config import NodeConfig, Pool
from csi.node.lvm import names as volume_names
from csi.node.lvm import tags as volume_tags
from csi.node.lvm.layout import Striped
from csi.node.lvm.model import ForeignGroup, LogicalVolume, PhysicalVolume, Report, UnreadableGroup, VolumeGroup
from csi.node.plan import provision, steps
from csi.node.volume import State, Wanted

EXTENT = 4 << 20
SIZE = 100 * EXTENT
CONFIG = NodeConfig(pools=(Pool(name="main", vgs=("vg0", "vg1")),), default_pool="main")
DEVICE = "/dev/vg0/pvc-1"


def wanted(name: str = "pvc-1", *, size: int = SIZE, limit: int | None = None, **given_parameters: str) -> Wanted:
    return Wanted(
        name=name,
        volume_id=volume_names.lv_name(name),
        name_digest=volume_names.name_digest(name),
        size_bytes=size,
        limit_bytes=limit,
        parameters=parameters.parse(given_parameters),
    )


def lv(name: str = "pvc-1", tags: Iterable[str] = (), vg: str = "vg0", **changes: Any) -> LogicalVolume:
    plain = LogicalVolume(
        name=name,
        vg=vg,
        size_bytes=SIZE,
        tags=frozenset(tags),
        partial=False,
    )
    return dataclasses.replace(plain, **changes)


def made(asked: Wanted, *, state: State = State.CREATING, vg: str = "vg0", **changes: Any) -> LogicalVolume:
    """The LV that an earlier CreateVolume left, in a later state."""
    old, new = volume_tags.state_tag(State.CREATING), volume_tags.state_tag(state)
    tags = {new if tag == old else tag for tag in volume_tags.encode(asked)}
    return lv(asked.volume_id, tags, vg, **changes)


def node(*lvs: LogicalVolume, free: int = 500) -> Report:
    """Two groups of two disks each; `free` extents are free on each disk."""

    def group(name: str) -> VolumeGroup:
        disks = tuple(
            PhysicalVolume(name=f"/dev/{name}-{disk}", extents=500, free_extents=free, allocatable=True, missing=False)
            for disk in "ab"
        )
        return VolumeGroup(
            name=name,
            extent_bytes=EXTENT,
            extents=1000,
            free_extents=2 * free,
            writable=True,
            exported=False,
            partial=False,
            pvs=disks,
            lvs=tuple(one for one in lvs if one.vg == name),
        )

    return Report(vgs=(group("vg0"), group("vg1")))


# Create


def create(asked: Wanted, *lvs: LogicalVolume, free: int = 500) -> steps.Plan:
    return provision.create(CONFIG, node(*lvs, free=free), asked)


def undated(tags: tuple[str, ...]) -> set[str]:
    return {tag for tag in tags if not tag.startswith("sl:created=")}


def test_a_new_volume_is_one_command_with_all_its_tags() -> None:
    (step,) = create(wanted())
    assert isinstance(step, steps.CreateLV)
    assert undated(step.tags) == undated(volume_tags.encode(wanted()))
    assert dataclasses.replace(step, tags=()) == steps.CreateLV(vg="vg0", name="pvc-1", extents=100, tags=())


def test_a_striped_volume_goes_to_the_disks_that_its_place_names() -> None:
    (step,) = create(wanted(lvmType="striping", stripeSize="64Ki", vgName="vg1"))
    assert isinstance(step, steps.CreateLV)
    assert step.layout == Striped(count=2, size_kib=64)
    assert (step.vg, step.extents, step.pvs) == ("vg1", 100, ("/dev/vg1-a", "/dev/vg1-b"))


def test_the_same_request_again_does_nothing() -> None:
    for state in (State.CREATING, State.READY):
        assert create(wanted(), made(wanted(), state=state)) == ()


def test_the_same_request_again_does_nothing_even_when_the_node_is_full() -> None:
    assert create(wanted(), made(wanted()), free=0) == ()


def test_a_volume_is_found_by_its_name_in_whatever_group_and_under_whatever_lv_name() -> None:
    moved = dataclasses.replace(made(wanted(), vg="vg1"), name="renamed")
    assert create(wanted(), moved) == ()


@pytest.mark.parametrize(
    ("size", "limit"),
    [(SIZE, None), (SIZE, SIZE), (SIZE - 1, None), (1, SIZE), (SIZE, 2 * SIZE)],
)
def test_a_compatible_size_is_the_same_volume(size: int, limit: int | None) -> None:
    assert create(wanted(size=size, limit=limit), made(wanted())) == ()


@pytest.mark.parametrize(("size", "limit"), [(SIZE + 1, None), (2 * SIZE, 3 * SIZE), (1, SIZE - 1)])
def test_another_size_is_another_volume_of_the_same_name(size: int, limit: int | None) -> None:
    words = rf"'pvc-1' exists with {SIZE} bytes, .*\({size} bytes, at most {limit or 'any'}\); use another name"
    with pytest.raises(AlreadyExists, match=words):
        create(wanted(size=size, limit=limit), made(wanted()))


@pytest.mark.parametrize("given_parameters", [{"wipe": "none"}, {"sealed": "xts"}, {"vgName": "vg0"}])
def test_other_parameters_are_another_volume_of_the_same_name(given_parameters: dict[str, str]) -> None:
    with pytest.raises(AlreadyExists, match="other StorageClass parameters"):
        create(wanted(**given_parameters), made(wanted()))


def test_a_volume_that_is_being_deleted_is_not_given_out_again() -> None:
    with pytest.raises(Refused, match="pvc-1 is being deleted; repeat"):
        create(wanted(), made(wanted(), state=State.DELETING))


def test_a_volume_with_a_missing_disk_is_not_given_out() -> None:
    with pytest.raises(Refused, match="a disk that holds part of it is missing"):
        create(wanted(), made(wanted(), partial=True))


@pytest.mark.parametrize("vg", ["vg0", "vg1"])
@pytest.mark.parametrize("tags", [(), ("owner=storage",), volume_tags.encode(wanted("other"))])
def test_an_lv_of_that_name_that_was_made_for_something_else_is_left_alone(vg: str, tags: tuple[str, ...]) -> None:
    with pytest.raises(ForeignContent, match=f"volume group {vg} already holds a logical volume pvc-1"):
        create(wanted(), lv(tags=tags, vg=vg))


def test_a_volume_that_fits_nowhere_is_no_space() -> None:
    with pytest.raises(NoSpace, match="vg0 has room for 80 MiB, vg1 has room for 80 MiB"):
        create(wanted(), free=10)


POOLS = NodeConfig(
    pools=(Pool(name="fast", vgs=("vg0",)), Pool(name="bulk", vgs=("bulk-0",))), include=(re.compile("data-.*"),)
)


def beside_unreadable(vg: str, *lvs: LogicalVolume) -> Report:
    """Groups that can be read, and one of which only these volumes are known; with none of them nothing is."""
    hidden = UnreadableGroup(name=vg, disks=("/dev/b",), why="/dev/b does not answer", lvs=lvs or None)
    return dataclasses.replace(node(), unreadable=(hidden,))


@pytest.mark.parametrize("where", [{"pool": "fast"}, {"vgName": "vg1"}, {"vgName": "vg0"}])
@pytest.mark.parametrize("hidden", ["bulk-0", "data-1"])
def test_a_group_that_the_class_does_not_mean_stops_no_volume(where: dict[str, str], hidden: str) -> None:
    on = dataclasses.replace(POOLS, include=(re.compile("data-.*|vg1"),))
    (step,) = provision.create(on, beside_unreadable(hidden), wanted(**where))
    assert isinstance(step, steps.CreateLV)


@pytest.mark.parametrize(
    ("where", "hidden"),
    [({"pool": "bulk"}, "bulk-0"), ({"vgName": "data-1"}, "data-1"), ({}, "bulk-0"), ({}, "data-1")],
)
def test_a_volume_that_may_be_in_a_group_that_nobody_can_read_is_not_made_again(
    where: dict[str, str], hidden: str
) -> None:
    with pytest.raises(Unavailable, match=f"may be in a group that nobody can read now. volume group {hidden}"):
        provision.create(POOLS, beside_unreadable(hidden), wanted(**where))


def test_a_volume_that_was_seen_in_a_group_that_nobody_can_read_is_not_made_again_elsewhere() -> None:
    seen = made(wanted(pool="bulk"), vg="bulk-0")
    with pytest.raises(Unavailable, match="bulk-0"):
        provision.create(POOLS, beside_unreadable("bulk-0", seen), wanted(pool="fast"))


def test_where_the_class_names_no_pool_the_default_one_is_meant() -> None:
    (step,) = provision.create(CONFIG, beside_unreadable("bulk-0"), wanted())
    assert isinstance(step, steps.CreateLV)
    with pytest.raises(Unavailable, match="vg1"):
        provision.create(CONFIG, beside_unreadable("vg1"), wanted())


# Finding


def test_a_volume_is_found_by_its_id() -> None:
    report = node(made(wanted("one")), made(wanted("two"), vg="vg1"), lv("root"))
    found = provision.by_id(report, "two")
    assert found is not None
    assert (found.lv.vg, found.volume_id) == ("vg1", "two")
    assert provision.by_id(report, "three") is None
    assert provision.by_id(report, "root") is None


def test_an_id_that_two_groups_claim_is_refused_and_not_chosen() -> None:
    report = node(made(wanted(), vg="vg1"), made(wanted(), vg="vg0"))
    with pytest.raises(Refused, match=r"pvc-1 exists in several volume groups \(vg0, vg1\)"):
        provision.by_id(report, "pvc-1")
    with pytest.raises(Refused, match=r"pvc-1 exists in several volume groups \(vg0, vg1\)"):
        provision.create(CONFIG, report, wanted())


def test_an_lv_of_the_same_name_that_is_not_ours_does_not_confuse() -> None:
    found = provision.by_id(node(lv("pvc-1"), made(wanted(), vg="vg1")), "pvc-1")
    assert found is not None
    assert found.lv.vg == "vg1"


# A volume is gone only when that is certain


@pytest.mark.parametrize("tag", ["sl:sealed=xts-hmac", "sl:kind=snapshot", "sl:state=resizing", "sl:wipe=shred"])
def test_an_lv_of_ours_that_a_newer_driver_made_is_not_taken_for_absent(tag: str) -> None:
    key = tag.partition("=")[0]
    tags = {tag, *(old for old in volume_tags.encode(wanted()) if old.partition("=")[0] != key)}
    with pytest.raises(Refused, match=r"vg0/pvc-1 carries this driver's tags, and this version can't read them"):
        provision.by_id(node(lv(tags=tags)), "pvc-1")


def test_an_lv_of_another_program_is_no_volume_of_ours() -> None:
    assert provision.by_id(node(lv(tags={"owner=storage"})), "pvc-1") is None


def test_a_volume_is_not_known_to_be_gone_while_a_group_of_the_configuration_is_missing() -> None:
    here = node()
    provision.require_gone(CONFIG, here, "pvc-1")
    late = dataclasses.replace(here, vgs=here.vgs[:1])
    with pytest.raises(Unavailable, match="volume group vg1 of this node's configuration is missing"):
        provision.require_gone(CONFIG, late, "pvc-1")


def test_a_volume_is_not_known_to_be_gone_while_a_group_that_was_used_and_is_still_allowed_is_missing() -> None:
    config = dataclasses.replace(CONFIG, include=(re.compile("late-.*"),))
    provision.require_gone(config, node(), "pvc-1", {"other": "UUID-1"})
    with pytest.raises(
        Unavailable, match=r"volume group late-0, in which this node has had volumes, is missing.*used-groups\.json"
    ):
        provision.require_gone(config, node(), "pvc-1", {"late-0": "UUID-2", "other": "UUID-1"})


def test_a_volume_is_not_known_to_be_gone_while_a_group_that_was_used_is_here_and_means_nothing_any_more() -> None:
    def beside(name: str, uuid: str) -> Report:
        return dataclasses.replace(node(), foreign=(ForeignGroup(name=name, uuid=uuid, disks=()),))

    for name in ("bulk-0", "renamed"):
        with pytest.raises(Refused, match=rf"{name} is here, .* names no more\. Name it again.*used-groups\.json"):
            provision.require_gone(CONFIG, beside(name, "UUID-1"), "pvc-1", {"bulk-0": "UUID-1"})
    provision.require_gone(CONFIG, beside("bulk-0", "UUID-2"), "pvc-1", {"bulk-0": "UUID-1"})
    provision.require_gone(CONFIG, beside("bulk-0", "UUID-1"), "pvc-1", {})


def test_an_lv_of_that_very_name_that_another_program_made_is_not_taken_for_a_deleted_volume() -> None:
    with pytest.raises(ForeignContent, match=r"vg0 holds a logical volume pvc-1 without a tag .* lvremove vg0/pvc-1"):
        provision.require_gone(CONFIG, node(lv(tags={"owner=open-local"})), "pvc-1")


@pytest.mark.parametrize(
    "there",
    [
        lv(name="pvc-2"),
        lv(tags={"sl:name=0123", "sl:state=ready"}),
    ],
    ids=["another name", "taken away from the driver by a person"],
)
def test_what_is_certainly_not_the_volume_does_not_stop_a_deletion(there: LogicalVolume) -> None:
    provision.require_gone(CONFIG, node(there), "pvc-1")


def test_an_lv_of_that_name_in_a_group_that_is_not_the_drivers_does_not_stop_a_deletion() -> None:
    foreign = dataclasses.replace(node().vgs[0], name="foreign", lvs=(lv(vg="foreign"),))
    provision.require_gone(CONFIG, dataclasses.replace(node(), vgs=(*node().vgs, foreign)), "pvc-1")
