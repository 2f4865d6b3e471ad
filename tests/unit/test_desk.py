"""A call gets one view of one moment: LVM is asked once, the kernel's mount table and Kata's registry are read once."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csi.core import disks
from csi.core.device_number import DeviceNumber
from csi.core.errors import Busy, NotFound
from csi.node import desk as desks
from csi.node import observe
from csi.node import settings as node_settings
from csi.node.desk import Desk
from csi.node.kata.record import Record
from csi.node.kata.registry import KataRegistry
from csi.node.locks import VolumeLocks
from csi.node.lvm import names
from csi.node.lvm.model import Report
from csi.node.lvm.turns import Turns
from csi.node.plan import steps
from csi.node.plan.target import Conditions
from csi.node.rpc.node import Node
from csi.node.rpc.proto import csi_pb2
from tests.fakes.node import Node as ToyNode
from tests.properties.test_node_converges import Driver

MOUNT_TABLE = "/proc/self/mountinfo"
NAME = names.checked_id("pvc-1")


class OneLook:
    """LVM that counts how often it is asked."""

    def __init__(self, node: ToyNode, folder: Path) -> None:
        self.node = node
        self.looks = 0
        self.turns = Turns(folder / "lvm.lock")

    def report(self) -> Report:
        self.looks += 1
        return self.node.report()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read whole, in order."""
    done: list[str] = []
    plain = Path.read_bytes

    def read(self: Path) -> bytes:
        done.append(str(self))
        return plain(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    return done


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A direct volume that is staged, and whose path leads to its device."""
    made = Driver(kind="direct")
    for call in ("create", "stage"):
        made.call(call)
    assert made.volume is not None
    device = made.volume.device
    monkeypatch.setattr(observe, "alive", lambda volume, _: replace(volume, live=made.node.live(volume.lv.name)))
    monkeypatch.setattr(disks, "leads_to", lambda _: device)
    return made


def desk(driver: Driver, folder: Path) -> tuple[Desk, list[steps.Step]]:
    """A desk over the toy's LVM, with the real look at everything else; and the steps that its plans came to."""
    toy: Any = OneLook(driver.node, folder)
    settings = node_settings.load(["--node-id", "n", "--kubelet-dir", str(folder), "--state-dir", str(folder)], {})
    done: list[steps.Step] = []
    handlers = dict.fromkeys(steps.Step.__args__, done.append)
    registry = KataRegistry(folder / "registry")
    made = Desk(settings=settings, runner=toy, lvm=toy, registry=registry, handlers=handlers, locks=VolumeLocks())
    return made, done


def test_one_publish_reads_the_mount_table_once_and_asks_lvm_once(
    driver: Driver, tmp_path: Path, reads: list[str]
) -> None:
    made, done = desk(driver, tmp_path)
    target = str(tmp_path / "pods/p/volumes/pvc-1/mount")
    made.registry.put(str(tmp_path / "other"), Record(device="/dev/vg0/other", fstype="ext4"))
    access = csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER)
    capability = csi_pb2.VolumeCapability(access_mode=access, mount=csi_pb2.VolumeCapability.MountVolume())
    request = csi_pb2.NodePublishVolumeRequest(
        volume_id=NAME, target_path=target, staging_target_path=str(tmp_path / "staging"), volume_capability=capability
    )
    toy: Any = None
    Node(made).NodePublishVolume(request, toy)
    assert [type(step) for step in done] == [steps.MountTombstone, steps.WriteRecord]
    assert reads.count(MOUNT_TABLE) == 1
    assert sum(name.endswith("mountInfo.json") for name in reads) == 1
    assert made.lvm.looks == 1  # type: ignore[attr-defined]


def test_what_happens_after_the_look_does_not_change_the_view(driver: Driver, tmp_path: Path) -> None:
    made, _ = desk(driver, tmp_path)
    with made.volume(NAME, "NodePublishVolume") as view:
        assert view.existing.device == DeviceNumber(254, 1)
        made.registry.put("/k/late", Record(device="/dev/vg0/pvc-1", fstype="ext4"))
        driver.call("publish")
        assert "/k/late" not in {entry.target for entry in view.around.entries}
        assert view.publications().targets == ()


def test_the_volume_is_held_and_lvm_is_not(driver: Driver, tmp_path: Path) -> None:
    made, _ = desk(driver, tmp_path)
    with made.volume(NAME, "NodeStageVolume"):
        assert made.lvm.turns.queues() == {}
        with pytest.raises(Busy, match="NodeStageVolume of volume pvc-1"), made.volume(NAME, "NodePublishVolume"):
            pytest.fail("two calls have one volume")


def creates(vg: str) -> steps.CreateLV:
    return steps.CreateLV(vg=vg, name=NAME, extents=1, tags=())


def test_an_allocation_holds_the_volume_and_its_group_and_no_other(driver: Driver, tmp_path: Path) -> None:
    made, done = desk(driver, tmp_path)

    def plan(_: Report, __: Conditions) -> steps.Plan:
        looks = made.lvm.looks  # type: ignore[attr-defined]
        if looks == 2:
            assert {name: queue.holder for name, queue in made.lvm.turns.queues().items()} == {
                "vg0": "CreateVolume pvc-1"
            }
            with pytest.raises(Busy), made.volume(NAME, "DeleteVolume"):
                pytest.fail("two calls have one volume")
        return (creates("vg0"),)

    made.allocate(NAME, "CreateVolume", plan)
    assert done == [creates("vg0")]
    assert made.lvm.turns.queues() == {}


def test_a_plan_that_changes_its_group_while_it_waits_is_made_again(driver: Driver, tmp_path: Path) -> None:
    made, done = desk(driver, tmp_path)
    groups = iter(("vg0", "vg1", "vg1", "vg1"))
    made.allocate(NAME, "CreateVolume", lambda *_: (creates(next(groups)),))
    assert done == [creates("vg1")]


def test_a_volume_that_is_there_by_then_is_not_made_again(driver: Driver, tmp_path: Path) -> None:
    made, done = desk(driver, tmp_path)
    plans = iter(((creates("vg0"),), ()))
    made.allocate(NAME, "CreateVolume", lambda *_: next(plans))
    assert done == []


def test_a_call_waits_for_its_groups_turn_before_it_holds_the_volume(driver: Driver, tmp_path: Path) -> None:
    made, done = desk(driver, tmp_path)
    began, end = threading.Event(), threading.Event()

    def hold() -> None:
        with made.lvm.turns.group("vg0", "a long lvcreate"):
            began.set()
            end.wait(20.0)

    holder = threading.Thread(target=hold)
    holder.start()
    assert began.wait(20.0)
    waiting = threading.Thread(target=made.allocate, args=(NAME, "CreateVolume", lambda *_: (creates("vg0"),)))
    waiting.start()
    while made.lvm.turns.queues()["vg0"].waiting == 0:
        threading.Event().wait(0.01)
    with made.volume(NAME, "NodeStageVolume"):
        pass
    end.set()
    for thread in (holder, waiting):
        thread.join()
    assert done == [creates("vg0")]


def test_a_volume_that_is_not_there_is_absent_or_not_found(driver: Driver, tmp_path: Path) -> None:
    made, _ = desk(driver, tmp_path)
    view = made.look(names.checked_id("pvc-2"), "ValidateVolumeCapabilities")
    assert (view.volume, view.publications().targets) == (None, ())
    with pytest.raises(NotFound, match="there is no volume pvc-2"):
        _ = view.existing


def test_the_machines_desk_has_one_runner_for_lvm_and_for_the_rest(tmp_path: Path) -> None:
    settings = node_settings.load(["--node-id", "n", "--state-dir", str(tmp_path)], {})
    made = desks.real(settings)
    assert made.lvm._process._runner is made.runner
    carried = made.handlers[steps.MakeFilesystem].__self__  # type: ignore[attr-defined]
    assert carried._runner is made.runner
