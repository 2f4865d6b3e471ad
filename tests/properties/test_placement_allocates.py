"""A size that is named as room is one that LVM allocates, whatever lies on the disks, and LVM would allocate no more.

Against a model of LVM's allocator that was compared with the real one (tests/tools/test_lvm_placement.py does so again).
"""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from csi.core.sealed import Profile, device_bytes
from csi.node.lvm.layout import Layout, Linear, Striped
from csi.node.lvm.model import AllocationPolicy, PhysicalVolume, VolumeGroup
from csi.node.plan.target import Target
from csi.node.volume import Parameters

EXTENT = 1 << 20
Disks = dict[str, tuple[int, ...]]
"""Name to the runs of free extents."""

CLINGS = (AllocationPolicy.CLING, AllocationPolicy.CLING_BY_TAGS)


def lvm_allocates(disks: Disks, policy: AllocationPolicy, extents: int, stripes: int) -> bool:
    """Whether `lvcreate` with these disks, all of the group or those that the command names, finds its extents."""
    each = extents // stripes
    if len(disks) < stripes:
        return False
    if policy is AllocationPolicy.CONTIGUOUS:
        return sum(max(runs, default=0) >= each for runs in disks.values()) >= stripes
    if policy in CLINGS:
        # It begins where the longest runs are, and does not try again elsewhere.
        begun = sorted(disks.values(), key=lambda runs: -max(runs, default=0))[:stripes]
        return all(sum(runs) >= each for runs in begun)
    if stripes == 1:
        return sum(map(sum, disks.values())) >= extents
    return sum(sum(runs) >= each for runs in disks.values()) >= stripes


def group(disks: Disks, policy: AllocationPolicy, used: int) -> VolumeGroup:
    pvs = tuple(
        PhysicalVolume(
            name=name,
            extents=sum(runs) + used,
            free_extents=sum(runs),
            allocatable=True,
            missing=False,
            longest_run=max(runs, default=0),
        )
        for name, runs in disks.items()
    )
    return VolumeGroup(
        name="vg0",
        extent_bytes=EXTENT,
        extents=sum(pv.extents for pv in pvs),
        free_extents=sum(pv.free_extents for pv in pvs),
        writable=True,
        exported=False,
        partial=False,
        pvs=pvs,
        lvs=(),
        policy=policy,
    )


RUNS = st.lists(st.integers(1, 60), max_size=4).map(tuple)
DISKS = st.lists(RUNS, min_size=1, max_size=5).map(lambda runs: {f"/dev/{n}": one for n, one in enumerate(runs)})
LAYOUTS: st.SearchStrategy[Layout] = st.one_of(
    st.just(Linear()), st.builds(Striped, count=st.one_of(st.none(), st.integers(2, 4)))
)
POLICIES = st.sampled_from(AllocationPolicy)


@given(
    disks=DISKS,
    policy=POLICIES,
    layout=LAYOUTS,
    profile=st.sampled_from(Profile),
    share=st.sampled_from(((0, 100), (0, 30), (1, 100), (7, 50), (50, 1))),
)
def test_every_size_up_to_the_one_that_is_named_is_allocated(
    disks: Disks, policy: AllocationPolicy, layout: Layout, profile: Profile, share: tuple[int, int]
) -> None:
    kept, percent = share
    target = Target(vg=group(disks, policy, used=10), kept_extents=kept)
    parameters = Parameters(layout=layout, profile=profile)
    largest = target.largest(parameters)
    for size_bytes in (largest, largest * percent // 100):
        if size_bytes <= 0:
            continue
        place = target.fit(parameters, size_bytes)
        assert place is not None
        assert place.extents * EXTENT >= device_bytes(size_bytes, profile)
        chosen = {name: disks[name] for name in place.pvs} or disks
        stripes = (place.layout.count or 0) if isinstance(place.layout, Striped) else 1
        assert lvm_allocates(chosen, policy, place.extents, stripes)
        assert sum(map(sum, disks.values())) - place.extents >= kept
    assert target.fit(parameters, largest + EXTENT) is None
    assert largest <= target.room


@given(disks=DISKS, policy=POLICIES, stripes=st.integers(1, 3))
def test_lvm_would_allocate_no_more_than_is_named(disks: Disks, policy: AllocationPolicy, stripes: int) -> None:
    parameters = Parameters(layout=Linear() if stripes == 1 else Striped(count=stripes))
    largest = Target(vg=group(disks, policy, used=0)).largest(parameters) // EXTENT
    choices = [dict(some) for size in range(1, len(disks) + 1) for some in combinations(disks.items(), size)]
    assert not any(lvm_allocates(some, policy, largest + stripes, stripes) for some in choices)
