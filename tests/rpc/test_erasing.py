"""Deletions and first stages that erase much: callers may leave, other pods go on, a kill in the middle loses nothing."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from csi.core import files
from csi.core.errors import Busy, DiskFailed
from csi.node import erasing, jobs
from csi.node.lvm.model import Report
from csi.node.plan import steps
from csi.node.rpc.proto import csi_pb2
from tests.fakes.csi_server import PATIENCE, CsiServer, serving
from tests.fakes.node import ZEROED
from tests.rpc.test_csi_server import LIFE, SIZE, Requests, live
from tests.rpc.test_csi_server import size as sized

Code = grpc.StatusCode
HELD_AS = {"ext4": "ext4", "direct": "ext4", "block": "block", "sealed": "sealed", "sealed-block": "sealed"}
CROWD = 160
"""More deletions than the server has threads."""


@pytest.fixture
def csi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CsiServer]:
    with serving(tmp_path, monkeypatch) as made:
        yield made


def used(csi: CsiServer, kind: str = "ext4") -> Requests:
    """A volume that a tenant has written to and let go."""
    requests = live(csi, "NodeUnpublishVolume", kind)
    csi.node.pod_write("pvc-1", requests.target, "a tenant's")
    for call in ("NodeUnpublishVolume", "NodeUnstageVolume"):
        csi.call(call, requests.of(call))
    return requests


def crowd(csi: CsiServer) -> list[Requests]:
    """So many volumes that were used, made at a stroke."""
    used(csi)
    lv, content = csi.node.lvs.pop("pvc-1"), csi.node.content.pop("pvc-1")
    names = [f"pvc-{number}" for number in range(CROWD)]
    for name in names:
        csi.node.lvs[name] = replace(lv, name=name, size_bytes=160 * 1024 * 1024, uuid=f"uuid-of-{name}")
        csi.node.content[name] = content
    return [Requests(csi, name=name) for name in names]


@pytest.mark.parametrize("kind", ["ext4", "block", "direct"])
def test_a_small_wipe_ends_within_the_call(csi: CsiServer, kind: str) -> None:
    requests = used(csi, kind)
    csi.call("DeleteVolume", requests.of("DeleteVolume"))
    assert csi.node.lvs == {}
    assert csi.node.content["pvc-1"] == ZEROED


def test_a_long_wipe_is_aborted_with_its_progress_goes_on_and_is_answered_at_once_when_done(csi: CsiServer) -> None:
    requests = used(csi)
    with csi.running("DeleteVolume", requests.of("DeleteVolume"), steps.ZeroRange) as first:
        code, message = csi.refused("DeleteVolume", requests.of("DeleteVolume"))
        assert code is Code.ABORTED
        assert f"still running (running, 0 of {SIZE} bytes done, 0 %)" in message
        for call in ("NodeStageVolume", "NodePublishVolume", "CreateVolume"):
            assert csi.refused(call, requests.of(call))[0] in (Code.ABORTED, Code.FAILED_PRECONDITION)
    assert first.code() is Code.OK
    assert csi.node.lvs == {}
    csi.call("DeleteVolume", requests.of("DeleteVolume"))


def test_long_work_is_counted_and_its_progress_shown(csi: CsiServer) -> None:
    requests = used(csi)
    page = csi.metrics.registry.get_sample_value
    labels = {"kind": "delete", "vg": "vg0"}
    with csi.running("DeleteVolume", requests.of("DeleteVolume"), steps.RemoveLV):
        assert page("sealed_local_jobs", {**labels, "state": "running"}) == 1
        assert page("sealed_local_job_done_bytes", labels) == SIZE
        assert page("sealed_local_job_of_bytes", labels) == SIZE
    assert page("sealed_local_jobs", {**labels, "state": "running"}) is None


def test_a_crowd_of_deletions_whose_callers_left_stops_no_other_pod(csi: CsiServer) -> None:
    other = Requests(csi, name="pvc-other")
    for call in LIFE[: LIFE.index("NodeUnpublishVolume")]:
        csi.call(call, other.of(call))
    all_requests = crowd(csi)
    with csi.hold(steps.ZeroRange):
        futures = [csi.method("DeleteVolume").future(one.of("DeleteVolume"), timeout=1.0) for one in all_requests]
        assert {future.code() for future in futures} <= {Code.DEADLINE_EXCEEDED, Code.ABORTED}
        again = [csi.method("DeleteVolume").future(one.of("DeleteVolume"), timeout=5.0) for one in all_requests]
        started = time.monotonic()
        csi.call("Probe", csi_pb2.ProbeRequest())
        csi.call("NodeUnpublishVolume", other.of("NodeUnpublishVolume"))
        assert time.monotonic() - started < 5
        assert {future.code() for future in again} <= {Code.DEADLINE_EXCEEDED, Code.ABORTED}
        running = [job for job in csi.desk.jobs.shown() if job.state is jobs.State.RUNNING]
        assert len(running) <= jobs.WORKERS_PER_GROUP
    until(lambda: not csi.desk.jobs.shown())
    marked = [name for name in csi.node.lvs if "sl:state=deleting" in csi.node.lvs[name].tags]
    assert marked == [], "a deletion that a call had marked was forgotten"


def test_after_a_kill_in_the_middle_all_deletions_that_were_begun_are_done(
    csi: CsiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in crowd(csi):
        lv = csi.node.lvs[one.name]
        tags = lv.tags - {"sl:state=ready"} | {"sl:state=deleting"}
        csi.node.lvs[one.name] = replace(lv, tags=tags)
    folder = tmp_path / "next"
    folder.mkdir()
    with serving(folder, monkeypatch) as heir:
        for field in ("lvs", "content", "zeroed", "devices"):
            setattr(heir.node, field, getattr(csi.node, field))
        assert heir.attempt()
        until(lambda: not heir.desk.jobs.shown())
        assert heir.node.lvs == {}
        assert set(heir.node.content.values()) == {ZEROED}


def test_a_block_volume_is_cleared_by_a_job_and_the_repeat_finds_it_staged(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume", "block")
    with csi.hold(steps.ClearRange) as gate:
        code, _ = csi.refused("NodeStageVolume", requests.of("NodeStageVolume"), timeout=0.5)
        assert code is Code.DEADLINE_EXCEEDED
        assert gate.reached.wait(PATIENCE)
    until(lambda: not csi.desk.jobs.shown())
    assert "sl:state=ready" in csi.node.lvs["pvc-1"].tags
    csi.call("NodeStageVolume", requests.of("NodeStageVolume"))
    assert csi.node.content["pvc-1"] == ZEROED


@pytest.mark.parametrize("call", ["NodeUnstageVolume", "DeleteVolume"])
def test_a_clearing_that_nobody_wants_any_more_is_called_off(csi: CsiServer, call: str) -> None:
    requests = live(csi, "NodeStageVolume", "block")
    with csi.hold(steps.ClearRange) as gate:
        stage = csi.method("NodeStageVolume").future(requests.of("NodeStageVolume"), timeout=PATIENCE)
        assert gate.reached.wait(PATIENCE)
        taken_down = csi.method(call).future(requests.of(call), timeout=PATIENCE)
        until(csi.desk.jobs.shown()[0].called_off.is_set)
    assert taken_down.code() is Code.OK
    assert stage.code() is Code.ABORTED
    assert csi.node.devices == {}
    assert ("pvc-1" in csi.node.lvs) == (call == "NodeUnstageVolume")


def test_a_bad_sector_in_a_wipe_is_named_with_the_way_out(csi: CsiServer) -> None:
    requests = used(csi)
    csi.failures[steps.ZeroRange] = DiskFailed(
        "/dev/vg0/pvc-1", "takes no write at byte 4096", OSError(5, "Input/output error")
    )
    for _ in range(2):
        code, message = csi.refused("DeleteVolume", requests.of("DeleteVolume"))
        assert code is Code.FAILED_PRECONDITION
        for word in ("volume pvc-1", "/dev/vg0/pvc-1", "at byte 4096", "lvchange --addtag sl:abandon-wipe vg0/pvc-1"):
            assert word in message
    lv = csi.node.lvs["pvc-1"]
    csi.node.lvs["pvc-1"] = replace(lv, tags=lv.tags | {"sl:abandon-wipe"})
    csi.call("DeleteVolume", requests.of("DeleteVolume"))
    assert csi.node.lvs == {}


def test_a_bad_sector_in_a_first_clearing_is_named(csi: CsiServer) -> None:
    requests = live(csi, "NodeStageVolume", "block")
    csi.failures[steps.ClearRange] = DiskFailed(
        "/dev/vg0/pvc-1", "takes no write at byte 4096", OSError(5, "Input/output error")
    )
    code, message = csi.refused("NodeStageVolume", requests.of("NodeStageVolume"))
    assert code is Code.UNAVAILABLE
    assert "/dev/vg0/pvc-1 takes no write" in message
    csi.call("DeleteVolume", requests.of("DeleteVolume"))
    assert csi.node.lvs == {}


def given_up_and_made_anew(csi: CsiServer, kind: str, patch: pytest.MonkeyPatch) -> Requests:
    """A deletion can't wipe a bad disk, a person removes the LV by hand, and the next claim gets the name."""
    patch.setattr(jobs, "_FIRST_RETRY_SECONDS", 300.0)
    requests = used(csi)
    csi.failures[steps.ZeroRange] = DiskFailed("/dev/vg0/pvc-1", "takes no write", "Input/output error")
    csi.refused("DeleteVolume", requests.of("DeleteVolume"))
    for remembered in (csi.node.lvs, csi.node.devices, csi.node.content):
        remembered.pop("pvc-1")
    csi.failures.clear()
    anew = Requests(csi, kind)
    csi.call("CreateVolume", anew.of("CreateVolume"))
    return anew


def retried_now(csi: CsiServer) -> None:
    """The time of every job that waits has come."""
    with csi.desk.jobs._changed:
        for job in csi.desk.jobs._jobs.values():
            job.not_before = 0.0
        csi.desk.jobs._changed.notify_all()
    until(lambda: not csi.desk.jobs.shown())


def test_a_deletion_that_is_tried_again_leaves_the_next_volume_of_its_name_alone(
    csi: CsiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = given_up_and_made_anew(csi, "ext4", monkeypatch)
    for call in ("NodeStageVolume", "NodePublishVolume"):
        csi.call(call, requests.of(call))
    csi.node.pod_write("pvc-1", requests.target, "the second owner's")
    for call in ("NodeUnpublishVolume", "NodeUnstageVolume"):
        csi.call(call, requests.of(call))
    retried_now(csi)
    assert csi.node.content["pvc-1"] == "the second owner's"
    assert "sl:state=ready" in csi.node.lvs["pvc-1"].tags


def test_a_first_stage_is_not_answered_by_a_deletion_of_an_earlier_volume(
    csi: CsiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = given_up_and_made_anew(csi, "block", monkeypatch)
    csi.call("NodeStageVolume", requests.of("NodeStageVolume"))
    assert "sl:state=ready" in csi.node.lvs["pvc-1"].tags
    assert csi.node.content["pvc-1"] == ZEROED


def test_a_deletion_of_the_next_volume_does_not_wait_for_one_of_the_volume_before(
    csi: CsiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = given_up_and_made_anew(csi, "block", monkeypatch)
    csi.call("NodeStageVolume", requests.of("NodeStageVolume"))
    csi.call("NodeUnstageVolume", requests.of("NodeUnstageVolume"))
    csi.call("DeleteVolume", requests.of("DeleteVolume"))
    assert csi.node.lvs == {}


def test_a_deletion_ends_when_its_volume_is_brought_back_by_a_backup_of_the_metadata(
    csi: CsiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_FIRST_RETRY_SECONDS", 300.0)
    requests = used(csi)
    backup = csi.node.lvs["pvc-1"]
    csi.failures[steps.ZeroRange] = DiskFailed("/dev/vg0/pvc-1", "takes no write", "Input/output error")
    csi.refused("DeleteVolume", requests.of("DeleteVolume"))
    csi.failures.clear()
    csi.node.lvs["pvc-1"] = backup
    retried_now(csi)
    assert csi.node.lvs == {"pvc-1": backup}
    assert csi.node.content["pvc-1"] == "a tenant's"


def test_a_first_clearing_that_waits_ends_when_another_volume_has_its_name(
    csi: CsiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_BUSY_SECONDS", 300.0)
    requests = live(csi, "NodeStageVolume", "block")
    csi.failures[steps.ClearRange] = Busy("a call has the volume")
    csi.refused("NodeStageVolume", requests.of("NodeStageVolume"), timeout=1.0)
    until(lambda: csi.desk.jobs.shown()[0].not_before > 0)
    csi.failures.clear()
    csi.node.lvs["pvc-1"] = replace(csi.node.lvs["pvc-1"], uuid="another")
    retried_now(csi)
    assert "sl:state=creating" in csi.node.lvs["pvc-1"].tags


def test_a_full_state_directory_stops_neither_a_wipe_nor_a_first_clearing(
    csi: CsiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted, staged = used(csi), Requests(csi, "block", name="pvc-2")
    csi.call("CreateVolume", staged.of("CreateVolume"))

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_atomic", full)
    csi.call("DeleteVolume", deleted.of("DeleteVolume"))
    csi.call("NodeStageVolume", staged.of("NodeStageVolume"))
    assert list(csi.node.lvs) == ["pvc-2"]
    assert csi.node.content == {"pvc-1": ZEROED, "pvc-2": ZEROED}


def test_a_group_that_comes_late_drops_no_note_of_work_that_goes_on(csi: CsiServer) -> None:
    requests = used(csi)
    with csi.running("DeleteVolume", requests.of("DeleteVolume"), steps.RemoveLV):
        (note,) = erasing._notes(csi.desk).iterdir()
        erasing.resume(csi.desk, Report(vgs=()))
        assert note.exists()


def test_a_first_stage_does_not_wait_behind_deletions(csi: CsiServer) -> None:
    pod = Requests(csi, "block", name="pvc-pod")
    csi.call("CreateVolume", pod.of("CreateVolume"))
    kept = csi.node.lvs["pvc-pod"]
    deletions = crowd(csi)[: 2 * jobs.WORKERS_PER_GROUP]
    csi.node.lvs = {one.name: csi.node.lvs[one.name] for one in deletions} | {"pvc-pod": kept}
    with csi.hold(steps.RemoveLV):
        with csi.hold(steps.ZeroRange) as gate:
            futures = [csi.method("DeleteVolume").future(one.of("DeleteVolume"), timeout=PATIENCE) for one in deletions]
            assert gate.reached.wait(PATIENCE)
            until(lambda: len(csi.desk.jobs.shown()) == len(deletions))
            stage = csi.method("NodeStageVolume").future(pod.of("NodeStageVolume"), timeout=PATIENCE)
            until(lambda: csi.desk.jobs.find("pvc-pod") is not None)
        assert stage.code() is Code.OK, "it waits for the end of a deletion"
    assert {future.code() for future in futures} <= {Code.OK, Code.ABORTED}
    until(lambda: not csi.desk.jobs.shown())
    assert set(csi.node.lvs) == {"pvc-pod"}


@pytest.mark.parametrize("kind", ["ext4", "block", "direct", "sealed", "sealed-block"])
def test_a_restored_backup_of_the_metadata_neither_clears_nor_formats_what_a_pod_has_had(
    csi: CsiServer, kind: str
) -> None:
    requests = live(csi, "NodeStageVolume", kind)
    backup = csi.node.lvs["pvc-1"]
    csi.call("NodeStageVolume", requests.of("NodeStageVolume"))
    csi.call("NodeUnstageVolume", requests.of("NodeUnstageVolume"))
    csi.node.content["pvc-1"] = "a tenant's"
    csi.node.lvs["pvc-1"] = backup
    code, message = csi.refused("NodeStageVolume", requests.of("NodeStageVolume"))
    assert code is Code.FAILED_PRECONDITION
    assert "vgcfgrestore" in message
    assert csi.node.content["pvc-1"] == "a tenant's"
    tags = backup.tags - {"sl:state=creating"} | {"sl:state=ready", f"sl:formatted={HELD_AS[kind]}"}
    csi.node.lvs["pvc-1"] = replace(backup, tags=tags)
    csi.call("NodeStageVolume", requests.of("NodeStageVolume"))
    csi.call("NodeUnstageVolume", requests.of("NodeUnstageVolume"))
    csi.call("DeleteVolume", requests.of("DeleteVolume"))
    assert list(csi.kubelet.glob("plugins/sealed-local.csi/given/*")) == []


def test_a_tiny_volume_of_a_class_that_wipes_nothing_needs_no_job(csi: CsiServer) -> None:
    requests = Requests(csi, "block", "pvc-tiny")
    csi.call("CreateVolume", requests.of("CreateVolume", capacity_range=sized(4 * 1024 * 1024)))
    before = threading.active_count()
    csi.call("NodeStageVolume", requests.of("NodeStageVolume"))
    csi.call("NodeUnstageVolume", requests.of("NodeUnstageVolume"))
    assert "job" not in {key for event in csi.events for key in event}
    assert threading.active_count() <= before + 2


def until(happened: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.02)
