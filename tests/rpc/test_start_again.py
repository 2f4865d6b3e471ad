"""A start that failed in part or as a whole is tried again without a restart; states are shown, changes logged once."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from csi.core import disks, errors, filesystems
from csi.core.device_number import DeviceNumber
from csi.node import desk, disk_probes, main, own_groups, until_readable
from csi.node.plan import steps
from csi.node.rpc.proto import csi_pb2
from tests.fakes.csi_server import PATIENCE, CsiServer, serving
from tests.rpc.test_csi_server import Requests, live

Code = grpc.StatusCode
DISKS = "pools: [{name: main, vgs: [vg0]}, {name: late, vgs: [vg1], devices: [/dev/late]}]"


@pytest.fixture
def csi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CsiServer]:
    with serving(tmp_path, monkeypatch, DISKS) as made:
        yield made


def ready(csi: CsiServer) -> bool:
    return bool(csi.call("Probe", csi_pb2.ProbeRequest()).ready.value)


def test_lvm_that_comes_late_is_found_without_a_restart(csi: CsiServer) -> None:
    csi.lvm.broken = errors.ToolFailed("lvm: not found on PATH; install the package that holds it")
    for _ in range(3):
        assert not csi.attempt()
        code, message = csi.refused("Probe", csi_pb2.ProbeRequest())
        assert (code, "install the package" in message) == (Code.FAILED_PRECONDITION, True)
    said = [event for event in csi.events if event["event"].startswith("LVM can't be used")]
    assert len(said) == 1, "the same reason is logged once"
    csi.lvm.broken = None
    csi.attempt()
    assert ready(csi)
    csi.call("CreateVolume", Requests(csi).of("CreateVolume"))


def test_lvm_that_fails_later_is_shown_and_does_not_fail_the_liveness_probe(csi: CsiServer) -> None:
    csi.attempt()
    csi.lvm.broken = errors.ToolFailed("lvm ends with status 3")
    assert not csi.attempt()
    assert ready(csi)
    assert "LVM: lvm ends with status 3" in csi.standing.words()


def test_a_pool_whose_disk_comes_late_is_completed(csi: CsiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert not csi.attempt()
    assert ready(csi), "one pool that lacks a disk stops no other"
    assert "no device /dev/late" in (csi.standing.pools["late"] or "")
    assert csi.standing.pools["main"] is None
    assert "pool late: " in csi.standing.words()
    made: list[steps.Step] = []
    monkeypatch.setattr(disks, "resolved", lambda path: path)
    monkeypatch.setattr(disks, "number", lambda path: DeviceNumber(8, 16))
    monkeypatch.setattr(disks, "edges_blank", lambda path: True)
    monkeypatch.setattr(filesystems, "signature", lambda runner, path: None)
    monkeypatch.setattr(csi.node, "apply", made.extend)
    csi.attempt()
    assert made == [steps.CreateVG(vg="vg1", devices=("/dev/late",))]
    said = [event["error"] for event in csi.events if event["event"] == "pool is not complete"]
    assert len(said) == len(set(said)) == 2, "no device; then, as the toy makes none, no group"


def test_a_disk_that_does_not_answer_stops_neither_the_start_nor_another_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_probes, "_PATIENCE_SECONDS", 0.2)
    config = "pools: [{name: bad, vgs: [bad], devices: [/dev/frozen, /dev/good]}, {name: main, vgs: [vg0]}]"
    with serving(tmp_path, monkeypatch, config) as csi:
        thawed, asked = threading.Event(), []

        def signature(runner: object, path: str) -> None:
            asked.append(path)
            if path == "/dev/frozen":
                assert thawed.wait(PATIENCE)

        monkeypatch.setattr(filesystems, "signature", signature)
        monkeypatch.setattr(disks, "resolved", lambda path: path)
        monkeypatch.setattr(disks, "edges_blank", lambda path: True)
        monkeypatch.setattr(disks, "number", lambda path: DeviceNumber(8, len(path)))
        for _ in range(3):
            csi.attempt()
        assert ready(csi)
        assert csi.standing.pools["main"] is None
        assert csi.standing.pools["bad"].startswith("/dev/frozen does not answer")  # type: ignore[union-attr]
        assert asked.count("/dev/frozen") == 1, "one thread and one wait a disk"
        made: list[steps.Step] = []
        monkeypatch.setattr(csi.node, "apply", made.extend)
        thawed.set()
        give_up = time.monotonic() + PATIENCE
        while not made and time.monotonic() < give_up:
            csi.attempt()
        assert made[0] == steps.CreateVG(vg="bad", devices=("/dev/frozen", "/dev/good"))


def test_a_group_that_is_not_there_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch, "pools: [{name: main, vgs: [vg0, vg-late]}]") as csi:
        assert not csi.attempt()
        assert ready(csi)
        assert "there is no volume group vg-late" in (csi.standing.pools["main"] or "")


def test_one_disk_in_two_pools_by_two_names_is_given_to_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = "pools: [{name: a, vgs: [a], devices: [/dev/x]}, {name: b, vgs: [b], devices: [/dev/disk/by-id/x]}]"
    monkeypatch.setattr(disks, "leads_to", lambda path: DeviceNumber(8, 16))
    with serving(tmp_path, monkeypatch, config) as csi:
        csi.attempt()
        for name, other in ("ab", "ba"):
            assert "is the same disk as" in (csi.standing.pools[name] or "")
            assert f"of pool {other}" in (csi.standing.pools[name] or "")
        assert csi.lvm.report().vg("a") is None


def test_a_damaged_memory_of_the_groups_stops_what_needs_one_and_not_teardown(
    csi: CsiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = live(csi, "NodeUnpublishVolume")
    memory = csi.settings.plugin_dir / "groups.json"
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text("{")
    desk.real(csi.settings)
    monkeypatch.setattr(csi.lvm, "_trust", until_readable.trust(lambda: own_groups.trust(csi.settings.config, memory)))
    monkeypatch.setattr(csi.lvm, "report", lambda: csi.lvm._trust.separate(csi.node.report()))
    for _ in range(2):
        assert not csi.attempt()
    assert ready(csi), "killed by its probe it could take nothing down"
    for said in (*csi.standing.pools.values(), csi.standing.words()):
        assert "groups.json can't be read" in (said or "")
    assert sum("groups.json" in event.get("error", "") for event in csi.events if event["event"][:3] == "LVM") == 1
    for call in ("NodeUnpublishVolume", "NodeUnstageVolume"):
        csi.call(call, requests.of(call))
    for volume, call in ((requests, "DeleteVolume"), (requests, "NodeStageVolume"), (requests, "CreateVolume")):
        assert csi.refused(call, volume.of(call))[0] is Code.UNAVAILABLE
    other = Requests(csi, name="pvc-other")
    assert csi.refused("CreateVolume", other.of("CreateVolume"))[0] is Code.RESOURCE_EXHAUSTED
    assert csi.refused("DeleteVolume", other.of("DeleteVolume"))[0] is Code.FAILED_PRECONDITION
    memory.unlink()
    csi.attempt()
    assert csi.standing.pools["main"] is None
    csi.call("DeleteVolume", requests.of("DeleteVolume"))


def test_places_that_nobody_else_sees_forbid_what_mounts_and_not_teardown(csi: CsiServer) -> None:
    requests = live(csi, "NodeUnpublishVolume", "ext4")
    csi.attempt()
    assert ready(csi)
    csi.faults = ("mounts below /var/lib/kubelet are private",)
    for call in ("NodeStageVolume", "NodePublishVolume"):
        code, message = csi.refused(call, requests.of(call))
        assert (code, message) == (Code.FAILED_PRECONDITION, csi.faults[0])
    code, message = csi.refused("Probe", csi_pb2.ProbeRequest())
    assert (code, "are private" in message) == (Code.FAILED_PRECONDITION, True)
    assert sum(event["event"] == "nothing is staged or published" for event in csi.events) == 1
    for call in ("NodeUnpublishVolume", "NodeUnstageVolume"):
        csi.call(call, requests.of(call))
    csi.faults = ()
    csi.attempt()
    assert ready(csi)


def test_no_attempt_begins_while_the_last_calls_end(csi: CsiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    ended = threading.Event()
    ended.set()

    class Server:
        def start(self) -> None:
            pass

        def stop(self, grace: float) -> threading.Event:
            order.append("the calls end")
            return ended

    class KeepingUp:
        def __init__(self, *_: object) -> None:
            pass

        def end(self) -> None:
            order.append("no further attempt")

        def join(self, seconds: float) -> None:
            order.append("the last attempt ends")

    monkeypatch.setattr(main.desk, "real", lambda settings: csi.desk)
    monkeypatch.setattr(main, "build_server", lambda *_: Server())
    monkeypatch.setattr(main, "_KeepingUp", KeepingUp)
    for machine in ("_bind", "_wait_for"):
        monkeypatch.setattr(main, machine, lambda *_: None)
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(main.process, "share_one_heap", lambda: None)
    assert main._serve(replace(csi.settings, metrics_address="")) == 0
    assert order == ["no further attempt", "the calls end", "the last attempt ends"]
