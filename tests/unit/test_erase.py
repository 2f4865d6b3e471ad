"""What is erased, when and by whom it could be seen otherwise; deletion wipes as promised, and never what is in use."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.device_number import DeviceNumber
from csi.core.errors import InUse, Refused
from csi.core.filesystem import Filesystem
from csi.core.sealed import PAYLOAD_OFFSET, Profile
from csi.core.size import MIB
from csi.node.content import Content, HoldsFilesystem, Raw, Sealed
from csi.node.lvm.live_device import LiveDevice
from csi.node.lvm.model import LogicalVolume, Report, VolumeGroup
from csi.node.plan import deletion, erase, steps
from csi.node.volume import State, Volume, Wipe

EXTENT = 4 << 20
SIZE = 100 * EXTENT
DEVICE = "/dev/vg0/pvc-1"


NOTHING_ELSE = Report(vgs=())


def volume(*, size: int = SIZE, active: bool = False, open_count: int = 0, **fields: Any) -> Volume:
    live = LiveDevice(number=DeviceNumber(254, 1), open_count=open_count) if active else None
    plain = Volume(
        lv=LogicalVolume(name="pvc-1", vg="vg0", size_bytes=size, tags=frozenset({CREATED}), partial=False),
        name_digest="",
        state=State.READY,
        size_bytes=size,
        params_digest="",
        profile=Profile.NONE,
        direct=False,
        wipe=Wipe.AUTO,
        holds=HoldsFilesystem(Filesystem.EXT4),
        fstype=None,
        mkfs_options=(),
        live=live,
    )
    return dataclasses.replace(plain, **fields)


CREATED = "sl:created=1795550000"
MARK = steps.ChangeTags(vg="vg0", name="pvc-1", remove=("sl:state=ready", CREATED), add=("sl:state=deleting",))
ACTIVATE = steps.Activate(vg="vg0", name="pvc-1")
WRITABLE = steps.SetReadOnly(device=DEVICE, read_only=False)
RELEASE = steps.ReleaseDevice(vg="vg0", name="pvc-1")
REMOVE = steps.RemoveLV(vg="vg0", name="pvc-1")


def zero(length: int, offset: int = 0) -> steps.ZeroRange:
    return steps.ZeroRange(device=DEVICE, offset=offset, length=length)


def discard(length: int, offset: int = 0) -> steps.DiscardRange:
    return steps.DiscardRange(device=DEVICE, offset=offset, length=length)


def test_a_used_volume_is_marked_wiped_and_then_removed() -> None:
    assert deletion.delete(volume(), NOTHING_ELSE, ()) == (MARK, ACTIVATE, WRITABLE, zero(SIZE), RELEASE, REMOVE)


def test_a_deletion_that_was_interrupted_wipes_again_and_goes_on() -> None:
    plan = deletion.delete(volume(state=State.DELETING), NOTHING_ELSE, ())
    assert plan == (ACTIVATE, WRITABLE, zero(SIZE), RELEASE, REMOVE)


@pytest.mark.parametrize(
    ("wipe", "profile", "size", "wiped"),
    [
        (Wipe.AUTO, Profile.NONE, SIZE, (zero(SIZE),)),
        (Wipe.AUTO, Profile.XTS, SIZE, (zero(PAYLOAD_OFFSET), discard(SIZE - PAYLOAD_OFFSET, PAYLOAD_OFFSET))),
        (Wipe.AUTO, Profile.XTS, PAYLOAD_OFFSET, (zero(PAYLOAD_OFFSET),)),
        (Wipe.AUTO, Profile.XTS, EXTENT, (zero(EXTENT),)),
        (Wipe.ZERO, Profile.NONE, SIZE, (zero(SIZE),)),
        (Wipe.ZERO, Profile.XTS, SIZE, (zero(SIZE),)),
        (Wipe.DISCARD, Profile.NONE, SIZE, (dataclasses.replace(discard(SIZE), or_zero=True),)),
        (Wipe.DISCARD, Profile.XTS, SIZE, (zero(PAYLOAD_OFFSET), discard(SIZE - PAYLOAD_OFFSET, PAYLOAD_OFFSET))),
    ],
)
def test_the_content_is_wiped_as_the_class_says(wipe: Wipe, profile: Profile, size: int, wiped: steps.Plan) -> None:
    plan = deletion.delete(volume(wipe=wipe, profile=profile, size=size), NOTHING_ELSE, ())
    assert plan == (MARK, ACTIVATE, WRITABLE, *wiped, RELEASE, REMOVE)


def test_a_volume_that_an_old_backup_calls_new_is_wiped_when_the_node_remembers_that_a_pod_had_it() -> None:
    restored = volume(state=State.CREATING, holds=None)
    assert deletion.delete(restored, NOTHING_ELSE, ()) == (REMOVE,)
    plan = deletion.delete(restored, NOTHING_ELSE, (), was_given=True)
    assert any(isinstance(step, steps.ZeroRange) for step in plan)
    assert plan[-1] == REMOVE


@given(
    wipe=st.sampled_from([Wipe.AUTO, Wipe.ZERO, Wipe.DISCARD]),
    profile=st.sampled_from(Profile),
    size=st.integers(1, 200).map(lambda mib: mib << 20),
)
def test_a_wipe_covers_the_whole_volume_once(wipe: Wipe, profile: Profile, size: int) -> None:
    plan = deletion.delete(volume(wipe=wipe, profile=profile, size=size), NOTHING_ELSE, ())
    ranges = [step for step in plan if isinstance(step, steps.ZeroRange | steps.DiscardRange)]
    assert [step.offset for step in ranges] == [0, *(step.offset + step.length for step in ranges[:-1])]
    assert ranges[-1].offset + ranges[-1].length == size


@pytest.mark.parametrize(
    "fields", [{"wipe": Wipe.NONE}, {"state": State.CREATING, "holds": None}], ids=["wipe: none", "never used"]
)
def test_a_volume_that_needs_no_wipe_is_removed_by_one_command(fields: dict[str, Any]) -> None:
    plan = deletion.delete(volume(**fields), NOTHING_ELSE, ())
    assert plan == (REMOVE,)


def test_a_volume_that_is_active_is_deactivated_before_it_is_removed() -> None:
    assert deletion.delete(volume(wipe=Wipe.NONE, active=True), NOTHING_ELSE, ()) == (RELEASE, REMOVE)


def test_a_volume_that_is_published_is_not_touched() -> None:
    with pytest.raises(InUse, match="pvc-1 is still published at /a, /b; delete the pod"):
        deletion.delete(volume(), NOTHING_ELSE, ("/a", "/b"))


@pytest.mark.parametrize("state", State)
def test_a_volume_that_somebody_holds_open_is_not_touched(state: State) -> None:
    with pytest.raises(InUse, match="pvc-1 is held open"):
        deletion.delete(volume(state=state, active=True, open_count=1), NOTHING_ELSE, ())


def test_a_volume_that_is_active_and_in_its_place_is_not_activated_again() -> None:
    plan = deletion.delete(volume(active=True), NOTHING_ELSE, (), node_is_right=True)
    assert plan == (MARK, WRITABLE, zero(SIZE), RELEASE, REMOVE)
    elsewhere = deletion.delete(volume(active=True), NOTHING_ELSE, (), node_is_right=False)
    assert elsewhere == (MARK, ACTIVATE, WRITABLE, zero(SIZE), RELEASE, REMOVE)


def test_a_wipe_does_not_go_to_a_disk_that_has_gone_and_come_back() -> None:
    stale = volume(active=True)
    assert stale.live is not None
    stale = dataclasses.replace(stale, live=dataclasses.replace(stale.live, stale=True))
    plan = deletion.delete(stale, NOTHING_ELSE, (), node_is_right=True)
    assert plan == (MARK, RELEASE, ACTIVATE, WRITABLE, zero(SIZE), RELEASE, REMOVE)


def test_a_volume_whose_disk_is_missing_says_the_way_out_and_is_not_marked() -> None:
    gone = volume()
    gone = dataclasses.replace(gone, lv=dataclasses.replace(gone.lv, partial=True))
    with pytest.raises(Refused, match=r"pvc-1 can't be wiped: a disk .* is missing.* lvremove vg0/pvc-1"):
        deletion.delete(gone, NOTHING_ELSE, ())
    unused = dataclasses.replace(gone, state=State.CREATING, holds=None)
    assert deletion.delete(unused, NOTHING_ELSE, ()) == (REMOVE,)


def test_a_wipe_that_a_person_gave_up_is_left_out() -> None:
    tagged = volume(state=State.DELETING)
    tagged = dataclasses.replace(tagged, lv=dataclasses.replace(tagged.lv, tags=frozenset({"sl:abandon-wipe"})))
    assert deletion.delete(tagged, NOTHING_ELSE, ()) == (REMOVE,)


def others(*lvs: LogicalVolume) -> Report:
    """What LVM shows besides the volume."""
    group = VolumeGroup(
        name="vg0",
        extent_bytes=EXTENT,
        extents=1000,
        free_extents=0,
        writable=True,
        exported=False,
        partial=False,
        pvs=(),
        lvs=lvs,
    )
    return Report(vgs=(group,))


def other(name: str, **fields: Any) -> LogicalVolume:
    plain = LogicalVolume(name=name, vg="vg0", size_bytes=SIZE, tags=frozenset(), partial=False)
    return dataclasses.replace(plain, **fields)


@pytest.mark.parametrize(
    "dependant",
    [
        other("backup", origin="pvc-1"),
        other("thin", origin="pvc-1", pool="pool0"),
        other("pvc-1_rimage_1"),
        other("pvc-1_mimage_0"),
    ],
    ids=lambda lv: lv.name,
)
@pytest.mark.parametrize("fields", [{}, {"wipe": Wipe.NONE}, {"holds": None}, {"state": State.DELETING}])
def test_what_depends_on_a_volume_is_named_and_nothing_is_touched(dependant: LogicalVolume, fields: Any) -> None:
    with pytest.raises(InUse, match=f"pvc-1 has dependants: vg0/{dependant.name}. .* lvremove"):
        deletion.delete(volume(**fields), others(other("pvc-10"), dependant), ())


def test_what_only_looks_like_a_dependant_does_not_stop_a_deletion() -> None:
    near = [
        other("pvc-1_rimage"),
        other("pvc-10_rimage_1"),
        other("backup", origin="pvc-10"),
        dataclasses.replace(other("backup", origin="pvc-1"), vg="vg1"),
    ]
    assert deletion.delete(volume(), others(*near), ())[-1] == REMOVE


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"is_origin": True}, "a snapshot that is being merged"),
        ({"is_locked": True}, "LVM moves or converts volume pvc-1 now.*pvmove --abort"),
        ({"pool": "cache0"}, "pool vg0/cache0.*lvconvert --uncache vg0/pvc-1"),
    ],
    ids=["merging", "moving", "cached"],
)
def test_a_volume_of_whose_content_lvm_has_a_copy_is_not_deleted(field: dict[str, Any], words: str) -> None:
    copied = volume()
    copied = dataclasses.replace(copied, lv=dataclasses.replace(copied.lv, **field))
    with pytest.raises(InUse, match=words):
        deletion.delete(copied, NOTHING_ELSE, ())


# Before the first use

EXT4 = HoldsFilesystem(Filesystem.EXT4)
EVERYTHING = (steps.ClearRange(device=DEVICE, offset=0, length=SIZE),)


def fresh(**fields: Any) -> Volume:
    return volume(state=State.CREATING, holds=None, **fields)


@pytest.mark.parametrize(
    ("there", "content"),
    [(fresh(), Raw()), (fresh(profile=Profile.XTS), Sealed(Profile.XTS)), (fresh(direct=True), EXT4)],
    ids=["block", "sealed", "direct"],
)
def test_whoever_sees_the_raw_device_sees_zeroes(there: Volume, content: Content) -> None:
    assert erase.before_first_use(there, content) == EVERYTHING


@pytest.mark.parametrize("wipe", Wipe)
def test_under_a_filesystem_of_the_node_only_the_ends_can_be_seen(wipe: Wipe) -> None:
    assert erase.before_first_use(fresh(wipe=wipe), EXT4) == (zero(MIB), zero(MIB, SIZE - MIB))


@pytest.mark.parametrize(
    ("there", "content", "head"),
    [
        (fresh(wipe=Wipe.NONE), Raw(), MIB),
        (fresh(wipe=Wipe.NONE, direct=True), EXT4, MIB),
        (fresh(wipe=Wipe.NONE, profile=Profile.XTS), Sealed(Profile.XTS), PAYLOAD_OFFSET),
    ],
    ids=["block", "direct", "sealed"],
)
def test_where_nobody_minds_only_signatures_go(there: Volume, content: Content, head: int) -> None:
    assert erase.before_first_use(there, content) == (zero(head), zero(MIB, SIZE - MIB))


# What takes long


def test_what_is_short_is_carried_out_in_the_call() -> None:
    plan = (ACTIVATE, zero(MIB), zero(3 * MIB, MIB), REMOVE)
    assert erase.split(plan) == (plan, ())


def test_what_is_long_is_marked_by_the_call_and_left_to_a_job() -> None:
    plan = deletion.delete(volume(), NOTHING_ELSE, ())
    assert erase.split(plan) == ((MARK,), (ACTIVATE, WRITABLE, zero(SIZE), RELEASE, REMOVE))


@given(
    offset=st.integers(0, 9).map(lambda mib: mib << 20),
    length=st.integers(1, 300 << 20),
    data=st.data(),
    step=st.sampled_from([zero(1), discard(1), *EVERYTHING]),
)
def test_slices_cover_what_is_left_once_and_in_order(
    offset: int, length: int, data: st.DataObject, step: erase.ErasingStep
) -> None:
    done = data.draw(st.integers(0, length))
    whole = dataclasses.replace(step, offset=offset, length=length)
    place = offset + done
    for piece in erase.slices(whole, done):
        assert (piece.offset, type(piece)) == (place, type(step))
        assert 0 < piece.length <= erase.SLICE_BYTES
        place += piece.length
    assert place == offset + length


def test_a_device_that_is_there_and_right_is_not_made_again() -> None:
    plan = deletion.delete(volume(active=True), NOTHING_ELSE, (), node_is_right=True)
    assert plan == (MARK, WRITABLE, zero(SIZE), RELEASE, REMOVE)


def test_a_device_on_a_disk_that_came_back_under_another_number_is_made_anew_for_the_wipe() -> None:
    there = volume(active=True)
    assert there.live is not None
    stale = dataclasses.replace(there, live=dataclasses.replace(there.live, stale=True))
    plan = deletion.delete(stale, NOTHING_ELSE, ())
    assert plan == (MARK, RELEASE, ACTIVATE, WRITABLE, zero(SIZE), RELEASE, REMOVE)


def test_a_volume_that_is_staged_for_guests_is_not_deleted() -> None:
    with pytest.raises(InUse, match="is still staged at /k/staging; unstage it first"):
        deletion.delete(volume(active=True), NOTHING_ELSE, (), staged_at="/k/staging")


def test_the_note_of_a_stage_that_ended_by_itself_holds_nothing_up() -> None:
    plan = deletion.delete(volume(wipe=Wipe.NONE), NOTHING_ELSE, (), staged_at="/k/staging")
    assert plan == (steps.ForgetStaged(volume_id=volume().volume_id), REMOVE)
    given_up = volume(state=State.DELETING, active=True, wipe=Wipe.NONE)
    assert deletion.delete(given_up, NOTHING_ELSE, (), staged_at="/k/staging")


def test_a_first_stage_that_failed_or_was_called_off_does_not_stop_the_deletion() -> None:
    begun = volume(state=State.CREATING, holds=None, active=True)
    plan = deletion.delete(begun, NOTHING_ELSE, (), staged_at="/k/staging")
    assert plan == (steps.ForgetStaged(volume_id=begun.volume_id), RELEASE, REMOVE)
