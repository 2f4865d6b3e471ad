"""A node's page for the cluster helper says what is there, and never that something isn't when it can't know."""

import http.client
import socket
from dataclasses import replace

import pytest

from csi.core import local_storage
from csi.core.errors import InvalidInput, ToolFailed
from csi.core.local_storage import Condition, Device, Page
from csi.node import config as node_config
from csi.node import local_storage as made
from csi.node import parameters, shown_disks
from csi.node.lvm import names
from csi.node.lvm.block_devices import BlockDevices
from csi.node.lvm.model import LogicalVolume, Report, Stranger, UnreadableGroup
from csi.node.metrics import Metrics
from csi.node.plan import provision
from csi.node.plan.target import AS_RECORDED
from csi.node.standing import Standing
from csi.node.volume import Wanted
from tests.fakes.node import EXTENT, Node

CONFIG = node_config.parse("pools: [{name: main, vgs: [vg0]}]", "a test")
RESERVED = node_config.parse("pools: [{name: main, vgs: [vg0], reserve: 50%}]", "a test")


def node_with(*volumes: str) -> Node:
    node = Node()
    for name in volumes:
        wanted = Wanted(
            name=name,
            volume_id=names.VolumeId(name),
            name_digest=names.name_digest(name),
            size_bytes=EXTENT,
            limit_bytes=None,
            parameters=parameters.parse({}),
        )
        node.apply(provision.create(CONFIG, node.report(), wanted))
    return node


def page_of(report: Report, config: node_config.NodeConfig = CONFIG) -> Page:
    return made.page(
        driver="sealed-local.csi",
        node="n1",
        topology="rack-1.n1",
        config=config,
        report=report,
        conditions=AS_RECORDED,
        devices=(Device(name="/dev/sda", total=5),),
    )


def changed(report: Report, **changes: object) -> Report:
    (vg,) = report.vgs
    return replace(report, vgs=(replace(vg, **changes),))  # type: ignore[arg-type]


def test_groups_and_volumes_are_told_with_their_sizes() -> None:
    report = node_with("pvc-1", "pvc-2").report()
    (vg,) = report.vgs
    page = page_of(report)
    (group,) = page.groups
    assert (page.node, page.topology, page.complete) == ("n1", "rack-1.n1", True)
    assert (group.name, group.total, group.available) == ("vg0", vg.size_bytes, vg.free_bytes)
    assert [(lv.name, lv.total, lv.vgname) for lv in group.logical_volumes] == [
        ("pvc-1", EXTENT, "vg0"),
        ("pvc-2", EXTENT, "vg0"),
    ]
    assert [(one.id, one.vg, one.total, one.deleting) for one in page.volumes] == [
        ("pvc-1", "vg0", EXTENT, False),
        ("pvc-2", "vg0", EXTENT, False),
    ]
    assert group.condition is Condition.READY


def test_what_may_be_allocated_leaves_out_the_reserve_and_the_volumes_of_others() -> None:
    report = node_with("pvc-1").report()
    (vg,) = report.vgs
    other = LogicalVolume(name="root", vg="vg0", size_bytes=2 * EXTENT, tags=frozenset(), partial=False)
    assert page_of(report).groups[0].allocatable == EXTENT + vg.free_bytes
    beside = page_of(changed(report, lvs=(*vg.lvs, other)))
    assert beside.groups[0].allocatable == EXTENT + vg.free_bytes, "a stranger's volume adds nothing"
    assert [one.id for one in beside.volumes] == ["pvc-1"]
    assert page_of(report, RESERVED).groups[0].allocatable < page_of(report).groups[0].allocatable


def test_a_full_group_a_broken_one_and_an_unreadable_one_are_told_apart() -> None:
    report = node_with().report()
    (vg,) = report.vgs
    full = replace(vg.pvs[0], free_extents=0)
    assert page_of(changed(report, free_extents=0, pvs=(full,))).groups[0].condition is Condition.FULL
    assert page_of(changed(report, partial=True)).groups[0].condition is Condition.FAULT
    lost = UnreadableGroup(name="vg1", disks=("/dev/sdb",), why="it does not answer")
    groups = page_of(replace(report, unreadable=(lost,))).groups
    assert [(one.name, one.condition) for one in groups] == [("vg0", Condition.READY), ("vg1", Condition.FAULT)]


def test_a_node_that_could_not_look_everywhere_says_so() -> None:
    report = node_with("pvc-1").report()
    (vg,) = report.vgs
    lost = UnreadableGroup(name="vg1", disks=("/dev/sdb",), why="it does not answer")
    assert not page_of(replace(report, unreadable=(lost,))).complete
    assert not page_of(replace(report, strangers=(Stranger(vg=vg, why="another UUID"),))).complete
    assert not page_of(replace(report, vgs=(vg, replace(vg, uuid="twin")))).complete


def test_a_volume_that_is_being_deleted_and_one_with_unreadable_tags_are_there() -> None:
    node = node_with("pvc-1", "pvc-2")
    gone = node.lvs["pvc-1"]
    node.lvs["pvc-1"] = replace(gone, tags=gone.tags - {"sl:state=creating"} | {"sl:state=deleting"})
    odd = node.lvs["pvc-2"]
    node.lvs["pvc-2"] = replace(odd, tags=odd.tags - {"sl:state=creating"} | {"sl:state=later"})
    assert [(one.id, one.deleting) for one in page_of(node.report()).volumes] == [("pvc-1", True), ("pvc-2", False)]


def test_the_page_comes_back_as_it_was_written_and_another_text_is_refused() -> None:
    page = page_of(node_with("pvc-1").report())
    assert local_storage.decode(local_storage.encode(page), "n1") == page
    for text in (b"", b"{}", b"\xff", b'{"driver": 1}'):
        with pytest.raises(InvalidInput, match="n1"):
            local_storage.decode(text, "n1")


def test_disks_are_told_with_what_they_are() -> None:
    real = BlockDevices().now()
    if not real:
        pytest.skip("this machine shows no block device")
    shown = list(shown_disks.shown(BlockDevices(), loop_devices=True))
    assert [device.name for device in shown] == [device.path for device in real]
    assert all(device.total > 0 and device.media_type in ("hdd", "ssd") for device in shown)
    without = list(shown_disks.shown(BlockDevices(), loop_devices=False))
    assert not [device for device in without if device.name.startswith("/dev/loop")]


def test_the_page_is_served_beside_the_metrics_and_hides_why_lvm_fails() -> None:
    node = node_with("pvc-1")
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    answers = [node.report()]

    def look() -> Page:
        if not answers:
            raise ToolFailed("vg-secret is broken")
        return page_of(answers.pop())

    stop = Metrics("sealed-local.csi", CONFIG, node.report).serve(address, Standing(tuple), look)
    try:
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("GET", "/local-storage")
        answer = connection.getresponse()
        assert answer.status == 200
        assert local_storage.decode(answer.read(), "n1").volumes[0].id == "pvc-1"
        connection.close()
        connection.request("GET", "/local-storage")
        broken = connection.getresponse()
        assert (broken.status, b"vg-secret" in broken.read()) == (503, False)
        connection.close()
    finally:
        stop()
