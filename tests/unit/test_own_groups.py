"""A group is this node's own by its disks or its UUID; its name proves nothing."""

import dataclasses
from pathlib import Path

import pytest

from csi.core.device_number import DeviceNumber
from csi.core.errors import InvalidInput, NoSpace, Refused, Unavailable
from csi.node import config, own_groups
from csi.node.config import NodeConfig, Pool
from csi.node.lvm.model import LogicalVolume, PhysicalVolume, Report, VolumeGroup
from csi.node.lvm.trust import Trust
from csi.node.plan import placement
from csi.node.volume import Parameters

OWN, OTHER = (f"{letter * 6}-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa" for letter in "ab")
OURS, THEIRS = DeviceNumber(8, 0), DeviceNumber(8, 16)


def group(uuid: str, *numbers: DeviceNumber | None, name: str = "vg0", lv: str = "") -> VolumeGroup:
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
    held = (LogicalVolume(name=lv, vg=name, size_bytes=1, tags=frozenset(), partial=False),) if lv else ()
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
    trust = Trust(keep=lambda pins: kept.append(dict(pins)))
    assert seen(trust, group(OWN, OURS)) == ([OWN], [])
    assert kept == [{"vg0": OWN}]
    assert seen(trust, group(OTHER, THEIRS), group(OWN, OURS)) == ([OWN], [OTHER])
    assert seen(trust, group(OTHER, THEIRS)) == ([], [OTHER])
    assert len(kept) == 1


def test_of_two_groups_of_one_name_neither_is_pinned() -> None:
    trust = Trust()
    assert seen(trust, group(OWN, OURS), group(OTHER, THEIRS)) == ([OWN, OTHER], [])
    assert trust.pins == {}


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
    assert trust.pins == {}


def test_a_stranger_has_no_room_and_the_message_says_what_to_do() -> None:
    trust = Trust(pins={"vg0": OWN})
    report = trust.separate(Report(vgs=(group(OTHER, THEIRS),)))
    on = NodeConfig(pools=(Pool(name="main", vgs=("vg0",)),), default_pool="main")
    with pytest.raises(
        NoSpace, match=rf"vg0 on /dev/b0 \(UUID {OTHER}\) is not used: .*{OWN}.*vgUuids: {{vg0: {OTHER}}}"
    ):
        placement.place(on, report, Parameters(), 1)
    assert placement.all_targets(on, report) == ()


def test_a_volume_that_only_a_stranger_holds_is_not_called_gone() -> None:
    trust = Trust(pins={"vg0": OWN})
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


def test_a_group_that_was_used_is_known_and_one_of_another_node_is_not() -> None:
    used = Trust(pins={"vg0": OWN})
    assert used.known == {"vg0"}
    assert Trust(uuids={"vg0": OWN, "another-nodes": OTHER}).known == frozenset()


def test_a_memory_that_cannot_be_written_does_not_stop_the_groups_that_are_used(tmp_path: Path) -> None:
    (tmp_path / "groups.new").mkdir()
    on = NodeConfig(pools=(Pool(name="main", vgs=("vg0",)),))
    assert seen(own_groups.trust(on, tmp_path / "groups.json"), group(OWN, OURS)) == ([OWN], [])


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
