"""A group is this node's own by its disks or its UUID; its name proves nothing."""

import dataclasses
import errno
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from csi.core.device_number import DeviceNumber
from csi.core.errors import InvalidInput, NoSpace, Refused, Unavailable
from csi.node import config, own_groups
from csi.node.config import NodeConfig, Pool
from csi.node.lvm.model import LogicalVolume, PhysicalVolume, Report, VolumeGroup
from csi.node.lvm.trust import Memory, Trust
from csi.node.plan import placement, provision
from csi.node.volume import Parameters

OWN, OTHER = (f"{letter * 6}-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa" for letter in "ab")
OURS, THEIRS = DeviceNumber(8, 0), DeviceNumber(8, 16)


def group(
    uuid: str, *numbers: DeviceNumber | None, name: str = "vg0", lv: str = "", tags: Iterable[str] = ()
) -> VolumeGroup:
    disks = tuple(
        PhysicalVolume(
            name=f"/dev/{uuid[0]}{number}",
            extents=100,
            free_extents=100,
            allocatable=True,
            missing=device is None,
            device=device,
        )
        for number, device in enumerate(numbers)
    )
    held = (LogicalVolume(name=lv, vg=name, size_bytes=1, tags=frozenset(tags), partial=False),) if lv else ()
    return VolumeGroup(
        name=name,
        uuid=uuid,
        extent_bytes=4 << 20,
        extents=100,
        free_extents=100,
        writable=True,
        exported=False,
        partial=False,
        pvs=disks,
        lvs=held,
    )


def seen(trust: Trust, *groups: VolumeGroup) -> tuple[list[str], list[str]]:
    """UUIDs of groups of this node, and of strangers."""
    found = trust.separate(Report(vgs=groups))
    return [vg.uuid for vg in found.vgs], [stranger.vg.uuid for stranger in found.strangers]


def test_a_group_is_pinned_at_its_first_use_and_a_twin_is_left_out() -> None:
    kept: list[dict[str, str]] = []
    trust = Trust(pins=Memory(keep=lambda pins: kept.append(dict(pins))))
    assert seen(trust, group(OWN, OURS)) == ([OWN], [])
    assert kept == [{"vg0": OWN}]
    assert seen(trust, group(OTHER, THEIRS), group(OWN, OURS)) == ([OWN], [OTHER])
    assert seen(trust, group(OTHER, THEIRS)) == ([], [OTHER])
    assert len(kept) == 1


def test_of_two_groups_of_one_name_neither_is_pinned() -> None:
    trust = Trust()
    assert seen(trust, group(OWN, OURS), group(OTHER, THEIRS)) == ([OWN, OTHER], [])
    assert trust.pins.uuids == {}


def test_where_the_configuration_confirms_groups_no_other_is_used() -> None:
    trust = Trust(uuids={"vg0": OWN})
    assert seen(trust, group(OTHER, THEIRS)) == ([], [OTHER])
    assert seen(trust, group(OTHER, THEIRS), group(OWN, OURS)) == ([OWN], [OTHER])
    assert seen(trust, group(OTHER, THEIRS, name="vg1")) == ([], [OTHER])


def test_the_group_of_a_pool_with_disks_lies_on_one_of_them() -> None:
    trust = Trust(pool_disks=lambda _: {OURS})
    assert seen(trust, group(OTHER, THEIRS)) == ([], [OTHER])
    assert seen(trust, group(OTHER, None)) == ([], [OTHER])
    assert seen(trust, group(OWN, OURS, THEIRS)) == ([OWN], [])
    assert trust.pins.uuids == {}


def test_a_stranger_has_no_room_and_the_message_says_what_to_do() -> None:
    trust = Trust(pins=Memory(uuids={"vg0": OWN}))
    report = trust.separate(Report(vgs=(group(OTHER, THEIRS),)))
    on = NodeConfig(pools=(Pool(name="main", vgs=("vg0",)),), default_pool="main")
    with pytest.raises(
        NoSpace, match=rf"vg0 on /dev/b0 \(UUID {OTHER}\) is not used: .*{OWN}.*vgUuids: {{vg0: {OTHER}}}"
    ):
        placement.place(on, report, Parameters(), 1)
    assert placement.all_targets(on, report) == ()


def test_a_volume_that_only_a_stranger_holds_is_not_called_gone() -> None:
    trust = Trust(pins=Memory(uuids={"vg0": OWN}))
    strange, own = group(OTHER, THEIRS, lv="pvc-1"), group(OWN, OURS)
    alone = trust.separate(Report(vgs=(strange,)))
    with pytest.raises(Unavailable, match="not trusted"):
        alone.require_readable("volume pvc-1", lambda lv: lv.name == "pvc-1")
    alone.require_readable("volume pvc-2", lambda lv: lv.name == "pvc-2")
    # While the right group is here, a stranger can't keep a deletion from ending.
    trust.separate(Report(vgs=(strange, own))).require_readable("volume pvc-1", lambda lv: lv.name == "pvc-1")


def test_uuids_at_first_use_outlive_the_driver(tmp_path: Path) -> None:
    path = tmp_path / "state" / "groups.json"
    on = NodeConfig(pools=(Pool(name="main", vgs=("vg0",)),))
    assert seen(own_groups.trust(on, path), group(OWN, OURS)) == ([OWN], [])
    assert seen(own_groups.trust(on, path), group(OTHER, THEIRS)) == ([], [OTHER])
    confirmed = dataclasses.replace(on, vg_uuids={"vg0": OTHER})
    assert seen(own_groups.trust(confirmed, path), group(OTHER, THEIRS)) == ([OTHER], [])


def test_a_confirmed_group_is_still_the_right_one_when_nothing_is_confirmed_any_more(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    on = NodeConfig(pools=(Pool(name="main", vgs=("vg0",)),), vg_uuids={"vg0": OWN})
    assert seen(own_groups.trust(on, path), group(OWN, OURS)) == ([OWN], [])
    without = dataclasses.replace(on, vg_uuids={})
    assert seen(own_groups.trust(without, path), group(OTHER, THEIRS)) == ([], [OTHER])


# Which groups a deletion waits for

PATTERN = NodeConfig(include=(re.compile("data-.*"),))
CONFIRMED = dataclasses.replace(PATTERN, vg_uuids={"data-1": OWN, "data-of-another-node": OTHER})


def with_volume(uuid: str = OWN, name: str = "data-1") -> VolumeGroup:
    return group(uuid, OURS, name=name, lv="pvc-1", tags=["sl:v1"])


def delete(trust: Trust, on: NodeConfig, *here: VolumeGroup) -> None:
    provision.require_gone(on, trust.separate(Report(vgs=here)), "pvc-1", trust.known)


@pytest.mark.parametrize("on", [PATTERN, CONFIRMED], ids=["pinned", "confirmed"])
def test_a_volume_is_not_called_deleted_while_a_group_that_had_volumes_is_late_after_a_boot(
    tmp_path: Path, on: NodeConfig
) -> None:
    path = tmp_path / "groups.json"
    own_groups.trust(on, path).separate(Report(vgs=(with_volume(),)))
    later = own_groups.trust(on, path)
    with pytest.raises(Unavailable, match=r"data-1, in which this node has had volumes, is missing.*used-groups\.json"):
        delete(later, on)
    delete(later, on, group(OWN, OURS, name="data-1", lv="pvc-2", tags=["sl:v1"]))
    with pytest.raises(Unavailable, match="is missing"):
        delete(later, on, group(OTHER, THEIRS, name="data-1", lv="pvc-2"))


def test_a_group_that_lies_on_a_pools_disks_is_remembered_when_it_had_volumes() -> None:
    trust = Trust(pool_disks=lambda _: {OURS})
    trust.separate(Report(vgs=(with_volume(name="vg0"),)))
    assert trust.known == {"vg0": OWN}


def test_a_disk_that_came_and_went_and_never_held_a_volume_of_ours_delays_no_deletion() -> None:
    trust = Trust()
    trust.separate(Report(vgs=(group(OTHER, THEIRS, name="data-x", lv="root"),)))
    assert trust.pins.uuids == {"data-x": OTHER}, "a later group of its name is a stranger all the same"
    delete(trust, PATTERN)


def test_a_group_is_remembered_before_the_first_volume_is_made_in_it() -> None:
    kept: list[dict[str, str]] = []
    trust = Trust(used=Memory(keep=lambda used: kept.append(dict(used))))
    trust.use(group(OWN, OURS, name="data-1"))
    assert kept == [{"data-1": OWN}]
    with pytest.raises(Unavailable, match="data-1"):
        delete(trust, PATTERN)


def test_a_group_whose_volumes_are_all_deleted_may_go(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    own_groups.trust(PATTERN, path).separate(Report(vgs=(with_volume(),)))
    delete(own_groups.trust(PATTERN, path), PATTERN, group(OWN, OURS, name="data-1", lv="root"))
    delete(own_groups.trust(PATTERN, path), PATTERN)


def test_a_look_from_before_the_first_volume_forgets_nothing() -> None:
    trust = Trust()
    trust.use(group(OWN, OURS, name="data-1"))
    trust.separate(Report(vgs=(group(OWN, OURS, name="data-1"),)))
    with pytest.raises(Unavailable, match="data-1"):
        delete(trust, PATTERN)
    trust.separate(Report(vgs=(with_volume(),)))
    delete(trust, PATTERN, group(OWN, OURS, name="data-1"))
    delete(trust, PATTERN)


def test_an_empty_group_of_the_name_does_not_make_the_one_with_volumes_forgotten() -> None:
    trust = Trust(uuids={"data-1": OTHER}, used=Memory(uuids={"data-1": OWN}))
    trust.separate(Report(vgs=(group(OTHER, THEIRS, name="data-1"),)))
    assert trust.known == {"data-1": OWN}


def test_a_group_that_had_volumes_and_has_another_name_now_is_not_missing() -> None:
    trust = Trust()
    trust.separate(Report(vgs=(with_volume(),)))
    delete(trust, PATTERN, group(OWN, OURS, name="data-2"))


def test_what_a_driver_of_before_saw_may_hold_volumes(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    own_groups.write(path, {"data-1": OWN})
    for _ in range(2):
        trust = own_groups.trust(PATTERN, path)
        with pytest.raises(Unavailable, match="data-1"):
            delete(trust, PATTERN)
    own_groups.write(path, {"data-1": OWN, "data-2": OTHER})
    assert own_groups.trust(PATTERN, path).known == {"data-1": OWN}, "from then on a sight is no use"


# A memory that fails


def test_what_could_not_be_kept_is_kept_as_soon_as_there_is_room(tmp_path: Path) -> None:
    path, on = tmp_path / "groups.json", PATTERN
    full = [tmp_path / "groups.new", tmp_path / "used-groups.new"]
    for place in full:
        place.mkdir()
    trust = own_groups.trust(on, path)
    for _ in range(2):
        assert seen(trust, with_volume()) == ([OWN], []), "a group that is used doesn't wait for another disk"
    for place in full:
        place.rmdir()
    trust.separate(Report(vgs=()))
    again = own_groups.trust(on, path)
    assert (again.pins.uuids, again.known) == ({"data-1": OWN}, {"data-1": OWN})
    assert seen(again, group(OTHER, THEIRS, name="data-1")) == ([], [OTHER])


def test_a_full_disk_is_told_once_and_asked_at_each_report(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[dict[str, str]] = []

    def full(uuids: Mapping[str, str]) -> None:
        tries.append(dict(uuids))
        raise OSError(errno.ENOSPC, "No space left on device")

    trust = Trust(pins=Memory(keep=full))
    for _ in range(3):
        trust.separate(Report(vgs=(group(OWN, OURS),)))
    assert tries == [{"vg0": OWN}] * 3
    assert [record.levelname for record in caplog.records if "can't remember" in record.message] == ["ERROR"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_file_that_cannot_be_read_is_no_absent_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "groups.json").write_text(content)
    with pytest.raises(Refused, match=r"groups\.json"):
        own_groups.read(tmp_path / "groups.json")


def test_confirmed_uuids_are_read_from_the_configuration() -> None:
    assert config.parse(f"vgUuids: {{vg0: {OWN}}}", "node.yaml").vg_uuids == {"vg0": OWN}
    assert config.parse("", "node.yaml").vg_uuids == {}
    with pytest.raises(
        InvalidInput, match=r"node\.yaml: vgUuids\.vg0: 'abc' is not the UUID of a volume group; see vgs"
    ):
        config.parse("vgUuids: {vg0: abc}", "node.yaml")
