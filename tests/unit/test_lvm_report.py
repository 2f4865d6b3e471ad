"""What LVM prints becomes what it means; what is not LVM's report is refused, never half understood."""

import json
from pathlib import Path
from typing import Any

import pytest

from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused, ToolFailed
from csi.node.lvm import report as lvm_report
from csi.node.lvm.model import AllocationPolicy, LogicalVolume, PhysicalVolume

GOLDEN = (Path(__file__).parents[1] / "data/lvm-2.03.16-fullreport.json").read_bytes()
REPORT = lvm_report.parse(GOLDEN)
MIB = 1 << 20


def section(name: str) -> dict[str, Any]:
    """The golden report's part on one group, to be changed and parsed again."""
    sections: list[dict[str, Any]] = json.loads(GOLDEN)["report"]
    return next(one for one in sections if one.get("vg") and one["vg"][0]["vg_name"] == name)


def text(*sections: dict[str, Any]) -> bytes:
    return json.dumps({"report": sections}).encode()


def parsed_lv(**fields: str) -> LogicalVolume:
    """`whole/pvc-1` with some fields as LVM shows them elsewhere."""
    changed = section("whole")
    changed["lv"][0].update(fields)
    return lvm_report.parse(text(changed)).lvs[0]


def test_the_captured_report_holds_every_field_that_is_asked_for() -> None:
    whole = section("whole")
    for kind, fields in (
        ("vg", lvm_report.VG_FIELDS),
        ("pv", lvm_report.PV_FIELDS),
        ("lv", lvm_report.LV_FIELDS),
        ("pvseg", lvm_report.PV_SEGMENT_FIELDS),
    ):
        assert {tuple(row) for row in whole[kind]} == {tuple(fields.split(","))}


def test_every_volume_group_is_there_and_disks_of_no_group_are_not() -> None:
    assert {vg.name for vg in REPORT.vgs} == {"whole", "broken", "exported"}
    assert "/dev/loop5" not in {pv.name for vg in REPORT.vgs for pv in vg.pvs}


def test_a_disk_with_a_label_and_nothing_else_is_unused() -> None:
    assert [(pv.name, pv.device) for pv in REPORT.unused] == [("/dev/loop5", DeviceNumber(7, 5))]


@pytest.mark.parametrize("field", [{"pv_attr": "u--"}, {"pv_attr": "d--"}, {"pv_missing": "missing"}])
def test_a_disk_that_a_group_uses_somewhere_is_not_unused(field: dict[str, str]) -> None:
    (lonely,) = (one for one in json.loads(GOLDEN)["report"] if not one.get("vg"))
    lonely["pv"][0].update(field)
    assert lvm_report.parse(text(lonely)).unused == ()


def test_of_two_groups_of_one_name_neither_is_handed_out() -> None:
    twin = section("whole")
    twin["vg"][0]["vg_uuid"] = "planted"
    report = lvm_report.parse(text(section("whole"), section("broken"), twin))
    assert report.ambiguous == {"whole"}
    uuid = section("whole")["vg"][0]["vg_uuid"]
    with pytest.raises(
        Refused, match=f"two volume groups have the name whole .UUID {uuid} on /dev/loop0.*UUID planted"
    ):
        report.vg("whole")
    assert report.vg("broken") is not None


@pytest.mark.parametrize(
    ("name", "extent", "extents", "free"),
    [("whole", 4 * MIB, 30, 21), ("broken", 4 * MIB, 30, 8), ("exported", MIB, 63, 63)],
)
def test_sizes_are_counted_in_the_extents_of_the_group(name: str, extent: int, extents: int, free: int) -> None:
    vg = REPORT.vg(name)
    assert vg is not None
    assert (vg.extent_bytes, vg.extents, vg.free_extents) == (extent, extents, free)
    assert (vg.size_bytes, vg.free_bytes) == (extents * extent, free * extent)


@pytest.mark.parametrize(
    ("name", "writable", "exported", "partial"),
    [("whole", True, False, False), ("broken", True, False, True), ("exported", True, True, False)],
)
def test_the_letters_of_a_group_are_read(name: str, writable: bool, exported: bool, partial: bool) -> None:
    vg = REPORT.vg(name)
    assert vg is not None
    assert (vg.writable, vg.exported, vg.partial) == (writable, exported, partial)


def test_a_read_only_group_is_not_writable() -> None:
    changed = section("whole")
    changed["vg"][0]["vg_attr"] = "rz--n-"
    (vg,) = lvm_report.parse(text(changed)).vgs
    assert not vg.writable
    assert vg.usable_free_extents == 0


def test_an_exported_group_has_no_room() -> None:
    vg = REPORT.vg("exported")
    assert vg is not None
    assert vg.free_extents == 63
    assert vg.usable_free_extents == 0


def test_a_disk_that_is_not_allocatable_has_no_usable_room() -> None:
    vg = REPORT.vg("whole")
    assert vg is not None
    assert vg.pvs == (
        PhysicalVolume(
            name="/dev/loop0",
            uuid="000004-0000-0000-0000-0000-0000-000000",
            extents=15,
            free_extents=8,
            allocatable=True,
            missing=False,
            device=DeviceNumber(7, 0),
            longest_run=8,
        ),
        PhysicalVolume(
            name="/dev/loop1",
            uuid="000005-0000-0000-0000-0000-0000-000000",
            extents=15,
            free_extents=13,
            allocatable=False,
            missing=False,
            device=DeviceNumber(7, 1),
            longest_run=13,
        ),
    )
    assert [pv.usable_free_extents for pv in vg.pvs] == [8, 0]
    assert vg.usable_free_extents == 8


def test_a_missing_disk_is_shown_as_missing() -> None:
    vg = REPORT.vg("broken")
    assert vg is not None
    assert [(pv.name, pv.missing) for pv in vg.pvs] == [("/dev/loop2", False), ("[unknown]", True)]
    assert [pv.device for pv in vg.pvs] == [DeviceNumber(7, 2), None]


def test_a_group_that_misses_a_disk_has_no_room_though_the_other_disks_have() -> None:
    vg = REPORT.vg("broken")
    assert vg is not None
    assert [pv.usable_free_extents for pv in vg.pvs] == [8, 0]
    assert (vg.missing_disks, vg.usable_free_extents) == (1, 0)


def test_a_missing_disk_has_no_usable_room_even_if_some_of_it_is_free() -> None:
    changed = section("broken")
    changed["pv"][1]["pv_pe_alloc_count"] = "5"
    (vg,) = lvm_report.parse(text(changed)).vgs
    assert (vg.pvs[1].free_extents, vg.pvs[1].usable_free_extents) == (10, 0)


def test_only_an_lv_that_lies_on_a_missing_disk_is_partial() -> None:
    vg = REPORT.vg("broken")
    assert vg is not None
    assert {lv.name: lv.partial for lv in vg.lvs} == {"on-one": False, "on-both": True}


def test_an_lv_is_named_with_its_group_its_size_and_its_tags() -> None:
    lv = next(lv for lv in REPORT.lvs if lv.name == "pvc-1")
    assert (lv.vg, lv.path, lv.size_bytes) == ("whole", "/dev/whole/pvc-1", 20 * MIB)
    assert lv.tags == {"sl:v1", "sl:state=ready", "owner=storage"}


def test_an_lv_without_tags_has_none() -> None:
    assert next(lv for lv in REPORT.lvs if lv.name == "pvc-2").tags == frozenset()


def test_an_lv_is_known_to_device_mapper_by_the_uuids_of_its_group_and_its_own() -> None:
    lv = parsed_lv(lv_uuid="abcdef-1111-2222-3333-4444-5555-666666")
    group = section("whole")["vg"][0]["vg_uuid"].replace("-", "")
    assert lv.mapping_name == "whole-pvc--1"
    assert lv.mapping_uuid == f"LVM-{group}abcdef11112222333344445555666666"


def test_a_snapshot_names_its_origin_and_a_thin_volume_its_pool() -> None:
    assert (parsed_lv(origin="pvc-2").origin, parsed_lv(pool_lv="thin").pool) == ("pvc-2", "thin")


def test_a_node_without_lvm_volumes_is_an_empty_report() -> None:
    assert lvm_report.parse(b'{"report": []}').vgs == ()
    assert lvm_report.parse(b'{"report": [{"pv": [], "pvseg": []}]}').vgs == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"  VG   #PV #LV\n  vg0  1   0\n",
        b"[]",
        b"{}",
        b'{"report": {}}',
        b'{"report": [',
        b'{"report": [{"vg": [{"vg_name": "a"}]}]}',
        b'{"report": [{"vg": [{"vg_name": "\xff"}]}]}',
        GOLDEN[:-10],
    ],
)
def test_what_is_not_the_report_is_a_failure_of_the_tool(content: bytes) -> None:
    with pytest.raises(ToolFailed, match="LVM's report can't be read"):
        lvm_report.parse(content)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("vg", "vg_extent_size", "4.00m"),
        ("vg", "vg_free_count", ""),
        ("vg", "vg_attr", "wz-"),
        ("pv", "pv_pe_count", "many"),
        ("pv", "pv_attr", ""),
        ("lv", "lv_size", "1.00g"),
        ("lv", "lv_attr", "-wi-a---"),
        ("lv", "lv_tags", None),
        ("lv", "lv_size", 5),
    ],
)
def test_a_field_of_another_shape_is_a_failure_of_the_tool(kind: str, field: str, value: object) -> None:
    changed = section("whole")
    changed[kind][0][field] = value
    with pytest.raises(ToolFailed, match="is another lvm"):
        lvm_report.parse(text(changed))


# What placement asks


def test_the_longest_run_of_free_extents_is_that_of_the_disk() -> None:
    changed = section("whole")
    changed["pvseg"] = [
        {"pv_name": name, "pvseg_start": "0", "pvseg_size": size, "segtype": kind}
        for name, size, kind in [
            ("/dev/loop0", "5", "free"),
            ("/dev/loop0", "9", "linear"),
            ("/dev/loop0", "3", "free"),
            ("/dev/loop1", "8", "linear"),
        ]
    ]
    (vg,) = lvm_report.parse(text(changed)).vgs
    assert {pv.name: pv.longest_run for pv in vg.pvs} == {"/dev/loop0": 5, "/dev/loop1": 0}


@pytest.mark.parametrize(
    ("word", "policy"),
    [
        *((policy.value, policy) for policy in AllocationPolicy),
        ("a word of a later LVM", AllocationPolicy.CONTIGUOUS),
    ],
)
def test_an_allocation_policy_that_nobody_knows_is_taken_for_the_strictest(word: str, policy: AllocationPolicy) -> None:
    changed = section("whole")
    changed["vg"][0] |= {"vg_allocation_policy": word, "max_lv": "7", "vg_mda_free": "512"}
    (vg,) = lvm_report.parse(text(changed)).vgs
    assert (vg.policy, vg.max_lv, vg.metadata_free_bytes) == (policy, 7, 512)


def test_a_copied_disk_is_told_by_standard_error_alone() -> None:
    uuid = section("whole")["pv"][0]["pv_uuid"]
    said = f"""  WARNING: Not using device /dev/sdz for PV {uuid}.
  WARNING: PV {uuid} prefers device /dev/loop0 because device was seen first.
"""
    found = {pv.name: pv.copy for vg in lvm_report.parse(GOLDEN, said.encode()).vgs for pv in vg.pvs if pv.copy}
    assert found == {"/dev/loop0": "/dev/sdz"}
