"""A place for an LV is one that LVM really has, and the answer to "how much fits" is exactly the largest that does."""

import dataclasses
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from csi.core.device_number import DeviceNumber
from csi.core.errors import NoSpace
from csi.core.sealed import PAYLOAD_OFFSET, Profile, device_bytes
from csi.node.config import NodeConfig, Pool, Strategy
from csi.node.lvm.layout import Linear, Striped
from csi.node.lvm.model import LogicalVolume, PhysicalVolume, Report, VolumeGroup
from csi.node.plan import placement
from csi.node.plan.target import Conditions, Placement, Target
from csi.node.quantity import NO_RESERVE, Reserve
from csi.node.volume import Parameters

EXTENT = 4 << 20
LINEAR = Parameters()
STRIPED = Parameters(layout=Striped())
SEALED = Parameters(profile=Profile.XTS)


def disk(name: str, free: int, *, allocatable: bool = True, missing: bool = False) -> PhysicalVolume:
    return PhysicalVolume(name=name, extents=100, free_extents=free, allocatable=allocatable, missing=missing)


def group(name: str, *disks: PhysicalVolume | int, extent: int = EXTENT) -> VolumeGroup:
    """A group of disks; a number stands for a disk of 100 extents with that many free ones: `/dev/a`, `/dev/b`..."""
    pvs = tuple(disk(f"/dev/{chr(97 + n)}", one) if isinstance(one, int) else one for n, one in enumerate(disks))
    return VolumeGroup(
        name=name,
        extent_bytes=extent,
        extents=sum(pv.extents for pv in pvs),
        free_extents=sum(pv.free_extents for pv in pvs),
        writable=True,
        exported=False,
        partial=False,
        pvs=pvs,
        lvs=(),
    )


def pool(name: str, *vgs: str, strategy: Strategy = Strategy.SPREAD, reserve: Reserve = NO_RESERVE) -> NodeConfig:
    """A configuration with one pool, which is the default one."""
    return NodeConfig(pools=(Pool(name=name, vgs=vgs, strategy=strategy, reserve=reserve),), default_pool=name)


def target(config: NodeConfig, vg: VolumeGroup) -> Target:
    """A group with its pool's reserve."""
    return placement.all_targets(dataclasses.replace(config, include=(re.compile(".*"),)), Report(vgs=(vg,)))[0]


def place(
    vg: VolumeGroup, extents: int, parameters: Parameters = LINEAR, config: NodeConfig | None = None
) -> Placement:
    config = config or pool("main", vg.name)
    return placement.place(config, Report(vgs=(vg,)), parameters, extents * vg.extent_bytes)


def no_place(vg: VolumeGroup, extents: int, parameters: Parameters = LINEAR, config: NodeConfig | None = None) -> str:
    with pytest.raises(NoSpace) as caught:
        place(vg, extents, parameters, config)
    return str(caught.value)


def stripes(count: int) -> Parameters:
    return Parameters(layout=Striped(count=count))


# Linear


def test_a_linear_volume_may_lie_on_uneven_disks() -> None:
    vg = group("vg0", 98, 1, 1)
    assert place(vg, 60) == Placement(vg=vg, extents=60)
    assert place(vg, 100) == Placement(vg=vg, extents=100)


def test_a_linear_volume_larger_than_all_disks_is_refused_with_what_there_is() -> None:
    assert no_place(group("vg0", 10, 10), 30) == (
        "no volume group can take 120 MiB (linear): vg0 has room for 80 MiB. "
        "Free or add space, ask for less, or let the scheduler use another node."
    )


def test_a_part_of_an_extent_takes_a_whole_one() -> None:
    vg = group("vg0", 10)
    report = Report(vgs=(vg,))
    for size_bytes, extents in ((1, 1), (EXTENT, 1), (EXTENT + 1, 2)):
        assert placement.place(pool("main", "vg0"), report, LINEAR, size_bytes).extents == extents


def test_the_header_of_a_sealed_volume_comes_on_top() -> None:
    vg = group("vg0", 20)
    assert placement.place(pool("main", "vg0"), Report(vgs=(vg,)), SEALED, 2 * EXTENT).extents == 11
    assert target(pool("main", "vg0"), vg).largest(SEALED) == 20 * EXTENT - PAYLOAD_OFFSET
    assert target(pool("main", "vg0"), group("vg0", 8)).largest(SEALED) == 0


# Striping


def test_uneven_disks_that_hold_a_linear_volume_do_not_hold_a_striped_one() -> None:
    vg = group("vg0", 98, 1, 1)
    assert "(striping): vg0 has room for 12 MiB." in no_place(vg, 60, STRIPED)
    assert "use fewer stripes or lvmType: linear" in no_place(vg, 60, STRIPED)
    assert place(vg, 3, STRIPED) == Placement(
        vg=vg, extents=3, layout=Striped(count=3), pvs=("/dev/a", "/dev/b", "/dev/c")
    )


def test_two_small_disks_take_no_striped_volume_larger_than_both() -> None:
    vg = group("vg0", 10, 10)
    assert "has room for 80 MiB" in no_place(vg, 30, STRIPED)
    assert place(vg, 20, STRIPED).layout == Striped(count=2)
    no_place(vg, 21, STRIPED)


@pytest.mark.parametrize(
    ("free", "wanted", "count", "disks"),
    [
        ((50, 10, 40), 20, 2, ("/dev/a", "/dev/c")),
        ((10, 50, 40), 60, 2, ("/dev/b", "/dev/c")),
        ((20, 20, 20), 20, 2, ("/dev/a", "/dev/b")),
    ],
)
def test_fewer_stripes_than_disks_lie_on_the_emptiest(
    free: tuple[int, ...], wanted: int, count: int, disks: tuple[str, ...]
) -> None:
    found = place(group("vg0", *free), wanted, stripes(count))
    assert (found.extents, found.layout, found.pvs) == (wanted, Striped(count=count), disks)


def test_as_many_disks_as_have_the_room_share_a_striped_volume() -> None:
    vg = group("vg0", 50, 50, 5)
    assert place(vg, 15, STRIPED).layout == Striped(count=3)
    assert place(vg, 16, STRIPED).layout == Striped(count=2)
    assert place(vg, 16, STRIPED).pvs == ("/dev/a", "/dev/b")


def test_stripes_are_of_equal_length() -> None:
    assert place(group("vg0", 10, 10, 10), 10, STRIPED).extents == 12
    no_place(group("vg0", 10, 10, 10), 29, stripes(2))


def test_a_striped_volume_never_lies_on_one_disk_alone() -> None:
    no_place(group("vg0", 100), 1, STRIPED)
    no_place(group("vg0", 100, 0), 1, STRIPED)


def test_more_stripes_than_disks_do_not_fit() -> None:
    assert "vg0 has room for 0 bytes" in no_place(group("vg0", 50, 50), 1, stripes(3))


@pytest.mark.parametrize("parameters", [LINEAR, STRIPED, stripes(2)])
def test_a_disk_that_lvm_would_not_use_counts_for_nothing(parameters: Parameters) -> None:
    vg = group("vg0", disk("/dev/a", 90, allocatable=False), disk("/dev/b", 5), disk("/dev/c", 5))
    no_place(vg, 11, parameters)
    found = place(vg, 10, parameters)
    assert "/dev/a" not in found.pvs
    assert target(pool("main", "vg0"), vg).room == 10 * EXTENT


@pytest.mark.parametrize("parameters", [LINEAR, STRIPED, stripes(2)])
def test_a_group_that_misses_a_disk_takes_nothing_and_says_why(parameters: Parameters) -> None:
    whole = group("vg0", disk("/dev/a", 50), disk("/dev/b", 50))
    for vg in (
        dataclasses.replace(whole, partial=True),
        dataclasses.replace(whole, pvs=(*whole.pvs, disk("[unknown]", 0, missing=True))),
    ):
        assert "vg0 has room for 0 bytes, as a disk of it is missing" in no_place(vg, 1, parameters)
        assert target(pool("main", "vg0"), vg).room == 0


@pytest.mark.parametrize("state", [{"writable": False}, {"exported": True}])
def test_a_group_that_can_not_be_changed_takes_nothing(state: dict[str, bool]) -> None:
    vg = dataclasses.replace(group("vg0", 50, 50), **state)
    for parameters in (LINEAR, STRIPED):
        assert "vg0 has room for 0 bytes" in no_place(vg, 1, parameters)


def test_a_group_in_which_lvm_would_allocate_nothing_has_no_room_and_says_why() -> None:
    vg = group("vg0", 50, 50)
    first, second = vg.pvs
    number = DeviceNumber(8, 0)
    protected = dataclasses.replace(vg, pvs=(dataclasses.replace(first, device=number), second))
    one = LogicalVolume(name="a", vg="vg0", size_bytes=EXTENT, tags=frozenset(), partial=False)
    found = {
        "may hold no more than 1 volumes": Target(vg=dataclasses.replace(vg, max_lv=1, lvs=(one,))),
        "a copy of its disk /dev/a is there as /dev/z": Target(
            vg=dataclasses.replace(vg, pvs=(dataclasses.replace(first, copy="/dev/z"), second))
        ),
        "its disk /dev/a is write-protected": Target(vg=protected, now=Conditions(read_only=frozenset({number}))),
        "its metadata area is full (31 KiB free": Target(vg=dataclasses.replace(vg, metadata_free_bytes=32 * 1024 - 1)),
        "vgimport vg0": Target(vg=dataclasses.replace(vg, exported=True)),
        "LVM's words": Target(vg=vg, now=Conditions(refused={"vg0": "LVM's words"})),
    }
    for words, closed in found.items():
        assert words in closed.closed
        assert (closed.room, closed.largest(LINEAR), closed.largest(STRIPED)) == (0, 0, 0)
        assert closed.fit(LINEAR, 1) is None
        assert closed.fit(STRIPED, 1) is None


def test_limits_that_are_not_reached_and_troubles_of_others_close_nothing() -> None:
    vg = group("vg0", 50)
    for change in ({"max_lv": 1}, {"max_lv": 0}, {"metadata_free_bytes": 32 * 1024}, {"metadata_free_bytes": None}):
        assert Target(vg=dataclasses.replace(vg, **change)).room == 50 * EXTENT
    others = Conditions(read_only=frozenset({DeviceNumber(8, 0)}), refused={"vg1": "words"})
    assert Target(vg=vg, now=others).room == 50 * EXTENT


def test_when_no_group_fits_the_reason_of_each_is_named() -> None:
    full = dataclasses.replace(group("vg0", 50), metadata_free_bytes=0)
    assert "vg0 has room for 0 bytes, as its metadata area is full (0 KiB free, see vgs -o vg_mda_free" in no_place(
        full, 1
    )


# Reserve


@pytest.mark.parametrize(
    ("reserve", "room"),
    [
        (Reserve(size_bytes=3 * EXTENT), 47),
        (Reserve(size_bytes=3 * EXTENT + 1), 46),
        (Reserve(percent=10), 40),
        (Reserve(percent=1), 49),
        (Reserve(percent=50), 0),
        (Reserve(percent=100), 0),
    ],
)
def test_the_reserve_is_kept_free(reserve: Reserve, room: int) -> None:
    vg = group("vg0", 50)
    config = pool("main", "vg0", reserve=reserve)
    assert target(config, vg).room == room * EXTENT
    assert target(config, vg).largest(LINEAR) == room * EXTENT
    no_place(vg, room + 1, LINEAR, config)


def test_the_reserve_holds_for_stripes_and_for_a_group_asked_for_by_name() -> None:
    config = pool("main", "vg0", reserve=Reserve(size_bytes=5 * EXTENT))
    vg = group("vg0", 10, 10)
    assert target(config, vg).largest(STRIPED) == 14 * EXTENT
    no_place(vg, 15, STRIPED, config)
    no_place(vg, 16, Parameters(vg_name="vg0"), config)


def test_a_group_outside_every_pool_has_no_reserve() -> None:
    config = dataclasses.replace(pool("main", "vg0", reserve=Reserve(percent=100)), default_pool=None)
    assert target(config, group("other", 50)).room == 50 * EXTENT


# Which group


def two_groups(strategy: Strategy) -> tuple[NodeConfig, Report]:
    return pool("main", "a", "b", "c", strategy=strategy), Report(vgs=(group("a", 40), group("b", 80), group("c", 20)))


@pytest.mark.parametrize(
    ("strategy", "extents", "vg"),
    [
        (Strategy.SPREAD, 1, "b"),
        (Strategy.SPREAD, 80, "b"),
        (Strategy.BINPACK, 1, "c"),
        (Strategy.BINPACK, 20, "c"),
        (Strategy.BINPACK, 21, "a"),
        (Strategy.BINPACK, 41, "b"),
    ],
)
def test_spread_takes_the_emptiest_group_and_binpack_the_fullest_that_fits(
    strategy: Strategy, extents: int, vg: str
) -> None:
    config, report = two_groups(strategy)
    assert placement.place(config, report, LINEAR, extents * EXTENT).vg.name == vg


@pytest.mark.parametrize(("strategy", "vg"), [(Strategy.SPREAD, "b"), (Strategy.BINPACK, "a")])
def test_strategies_compare_the_room_that_the_reserve_leaves(strategy: Strategy, vg: str) -> None:
    """Half of each is kept: `a` has 60 free and 10 for volumes, `b` 50 free and 40."""
    big, small = group("a", 60), dataclasses.replace(group("b", 50), extents=20)
    config = pool("main", "a", "b", strategy=strategy, reserve=Reserve(percent=50))
    assert placement.place(config, Report(vgs=(big, small)), LINEAR, EXTENT).vg.name == vg


def test_the_next_group_of_the_strategy_is_taken_where_lvm_has_refused_the_first() -> None:
    config, report = two_groups(Strategy.SPREAD)
    refused = Conditions(refused={"b": "LVM refused the volume (words of LVM)"})
    assert placement.place(config, report, LINEAR, 30 * EXTENT, refused).vg.name == "a"
    with pytest.raises(NoSpace, match=r"a has room for 160 MiB, b has room for 0 bytes, as LVM refused .*words of LVM"):
        placement.place(config, report, LINEAR, 50 * EXTENT, refused)


@pytest.mark.parametrize(("asked", "vg"), [("pack", "a"), ("spread", "d"), (None, "d")])
def test_the_strategy_is_that_of_the_pool_that_is_asked_for(asked: str | None, vg: str) -> None:
    pack = Pool(name="pack", vgs=("a", "b"), strategy=Strategy.BINPACK)
    config = NodeConfig(pools=(pack, Pool(name="spread", vgs=("c", "d"))), default_pool="spread")
    report = Report(vgs=(group("a", 40), group("b", 80), group("c", 40), group("d", 80)))
    assert placement.place(config, report, Parameters(pool=asked), 1).vg.name == vg


@pytest.mark.parametrize(("strategy", "vg"), [(Strategy.BINPACK, "a"), (Strategy.SPREAD, "b")])
def test_without_a_default_pool_the_strategy_is_that_of_the_groups(strategy: Strategy, vg: str) -> None:
    config = dataclasses.replace(pool("main", "a", "b", strategy=strategy), default_pool=None)
    assert placement.place(config, Report(vgs=(group("a", 40), group("b", 80))), LINEAR, 1).vg.name == vg


def test_groups_of_no_pool_are_spread_over() -> None:
    config = NodeConfig(include=(re.compile(".*"),))
    assert placement.place(config, Report(vgs=(group("a", 40), group("b", 80))), LINEAR, 1).vg.name == "b"


@pytest.mark.parametrize("strategy", Strategy)
def test_between_equal_groups_the_name_decides(strategy: Strategy) -> None:
    report = Report(vgs=(group("b", 50), group("a", 50)))
    assert placement.place(pool("main", "b", "a", strategy=strategy), report, LINEAR, 1).vg.name == "a"


def test_a_group_that_has_room_but_not_for_stripes_is_passed_over() -> None:
    report = Report(vgs=(group("a", 90), group("b", 20, 20)))
    assert placement.place(pool("main", "a", "b"), report, STRIPED, EXTENT).vg.name == "b"


def test_of_two_groups_of_one_name_neither_is_taken() -> None:
    twins = (dataclasses.replace(group("a", 90), uuid="one"), dataclasses.replace(group("a", 80), uuid="two"))
    report = Report(vgs=(*twins, group("b", 1)))
    assert [one.vg.name for one in placement.targets(pool("main", "a", "b"), report, LINEAR)] == ["b"]
    for parameters in (LINEAR, Parameters(vg_name="a")):
        with pytest.raises(
            NoSpace, match=r"two volume groups have the name a \(UUID one on .*; UUID two on .*vgrename"
        ):
            placement.targets(pool("main", "a"), report, parameters)


def test_when_no_group_fits_each_is_named_with_its_room() -> None:
    config, report = two_groups(Strategy.SPREAD)
    with pytest.raises(NoSpace, match="a has room for 160 MiB, b has room for 320 MiB, c has room for 80 MiB"):
        placement.place(config, report, LINEAR, 81 * EXTENT)


POOLS = NodeConfig(pools=(Pool(name="fast", vgs=("a", "gone")), Pool(name="bulk", vgs=("b",))))


def names(config: NodeConfig, parameters: Parameters, *vgs: str) -> list[str]:
    report = Report(vgs=tuple(group(name, 50) for name in vgs))
    return sorted(one.vg.name for one in placement.targets(config, report, parameters))


def test_a_pool_means_those_of_its_groups_that_are_there() -> None:
    assert names(POOLS, Parameters(pool="fast"), "a", "b", "x") == ["a"]
    assert names(POOLS, Parameters(pool="bulk"), "a", "b", "x") == ["b"]


def test_without_a_pool_the_default_one_counts() -> None:
    config = dataclasses.replace(POOLS, default_pool="bulk")
    assert names(config, LINEAR, "a", "b", "x") == ["b"]
    assert names(config, Parameters(pool="fast"), "a", "b", "x") == ["a"]


def test_without_any_default_every_group_that_may_be_used_counts() -> None:
    assert names(POOLS, LINEAR, "x", "b", "a") == ["a", "b"]


def test_a_group_by_name_is_that_one_alone() -> None:
    config = dataclasses.replace(POOLS, default_pool="bulk")
    assert names(config, Parameters(vg_name="a"), "a", "b") == ["a"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (Parameters(vg_name="x"), "configuration doesn't let the driver use volume group x; add it to a pool or to"),
        (Parameters(vg_name="missing"), "no volume group missing; usable here: a, b. Create the group, correct"),
        (Parameters(pool="slow"), "has no pool 'slow'; its pools: fast, bulk"),
    ],
)
def test_a_node_without_the_group_or_pool_says_what_it_has(parameters: Parameters, words: str) -> None:
    with pytest.raises(NoSpace, match=words):
        names(POOLS, parameters, "a", "b", "x")


def test_a_node_whose_groups_are_all_foreign_has_none() -> None:
    with pytest.raises(NoSpace, match="no volume group that its configuration allows; usable here: none"):
        names(NodeConfig(), LINEAR, "root")
    with pytest.raises(NoSpace, match="no volume group a or gone; usable here: none"):
        names(POOLS, Parameters(pool="fast"), "x")


# For all groups, reserves and layouts

DISKS = st.lists(
    st.builds(
        disk,
        st.uuids().map(str),
        st.integers(0, 100),
        allocatable=st.sampled_from([True, True, True, False]),
        missing=st.sampled_from([False] * 20 + [True]),
    ),
    min_size=1,
    max_size=6,
)
GROUPS = st.builds(lambda disks, extent: group("vg0", *disks, extent=extent), DISKS, st.sampled_from([1 << 20, EXTENT]))
CONFIGS = st.one_of(
    st.just(NO_RESERVE),
    st.builds(Reserve, percent=st.integers(0, 100)),
    st.builds(Reserve, size_bytes=st.integers(0, 100 * EXTENT)),
).map(lambda reserve: pool("main", "vg0", reserve=reserve))
PARAMETERS = st.builds(
    lambda layout, profile: Parameters(layout=layout, profile=profile),
    st.one_of(st.just(Linear()), st.builds(Striped, count=st.one_of(st.none(), st.integers(2, 7)))),
    st.sampled_from(Profile),
)


def check_within_room(found: Placement, config: NodeConfig) -> None:
    """Every disk gets at most what it has, and the group keeps its reserve."""
    free = {pv.name: pv.usable_free_extents for pv in found.vg.pvs}
    if isinstance(found.layout, Striped):
        count = found.layout.count
        assert len(found.pvs) == len(set(found.pvs)) == count
        assert found.extents % count == 0
        assert all(found.extents // count <= free[name] for name in found.pvs)
    assert found.extents * found.vg.extent_bytes <= target(config, found.vg).room
    kept = (found.vg.usable_free_extents - found.extents) * found.vg.extent_bytes
    assert kept >= config.pools[0].reserve.of(found.vg.size_bytes)


@given(vg=GROUPS, config=CONFIGS, parameters=PARAMETERS, percent=st.integers(0, 100))
def test_a_place_never_exceeds_what_any_disk_has(
    vg: VolumeGroup, config: NodeConfig, parameters: Parameters, percent: int
) -> None:
    largest = target(config, vg).largest(parameters)
    assume(largest)
    size_bytes = max(1, largest * percent // 100)
    found = placement.place(config, Report(vgs=(vg,)), parameters, size_bytes)
    check_within_room(found, config)
    assert found.extents * vg.extent_bytes >= device_bytes(size_bytes, parameters.profile)
    if isinstance(parameters.layout, Striped):
        assert isinstance(found.layout, Striped)
        assert found.layout.count > 1
        assert parameters.layout.count in (None, found.layout.count)
    else:
        assert found.layout == Linear()


@given(vg=GROUPS, config=CONFIGS, parameters=PARAMETERS)
def test_the_largest_volume_fits_and_one_byte_more_does_not(
    vg: VolumeGroup, config: NodeConfig, parameters: Parameters
) -> None:
    report, largest = Report(vgs=(vg,)), target(config, vg).largest(parameters)
    if largest:
        check_within_room(placement.place(config, report, parameters, largest), config)
    for more in (1, vg.extent_bytes):
        with pytest.raises(NoSpace):
            placement.place(config, report, parameters, largest + more)
