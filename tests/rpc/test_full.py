"""Calls that hang by the hundred: Identity and the teardown of other pods go on; nothing of the crowd stays."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from csi.core.errors import Unavailable
from csi.node.plan import steps
from csi.node.rpc import admission
from csi.node.rpc.admission import Admission
from csi.node.rpc.proto import csi_pb2
from tests.fakes.csi_server import PATIENCE, CsiServer, serving
from tests.rpc.test_csi_server import LIFE, Requests, live

Code = grpc.StatusCode
DELETE = "/csi.v1.Controller/DeleteVolume"
UNPUBLISH = "/csi.v1.Node/NodeUnpublishVolume"
SERVED_SECONDS = 1.0


@pytest.fixture
def csi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CsiServer]:
    with serving(tmp_path, monkeypatch) as made:
        yield made


def hung(csi: CsiServer, number: int) -> list[grpc.Future]:
    """So many calls that hang in their first step."""
    names = [f"pvc-hung-{index}" for index in range(number)]
    template = csi.node.lvs["pvc-1"]
    for name in names:
        csi.node.lvs[name] = replace(template, name=name, uuid=f"uuid-of-{name}")
        csi.node.content[name] = csi.node.content["pvc-1"]
    stage = csi.method("NodeStageVolume")
    return [stage.future(Requests(csi, name=name).of("NodeStageVolume"), timeout=PATIENCE) for name in names]


def begun(csi: CsiServer, call: str) -> int:
    """How many such calls have a thread, or had one."""
    return sum((event["event"], event.get("rpc")) == ("request", call) for event in csi.events)


def until(happened: Callable[[], bool]) -> None:
    """Wait for what must come."""
    give_up = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_identity_and_unpublish_answer_while_a_crowd_hangs(csi: CsiServer) -> None:
    other = live(csi, "NodeUnpublishVolume", "ext4")
    with csi.hold(steps.Activate) as gate:
        futures = hung(csi, 130)
        assert gate.reached.wait(PATIENCE)
        until(lambda: begun(csi, "NodeStageVolume") >= 128)
        began = time.monotonic()
        csi.call("Probe", csi_pb2.ProbeRequest(), timeout=SERVED_SECONDS)
        csi.call("GetPluginInfo", csi_pb2.GetPluginInfoRequest(), timeout=SERVED_SECONDS)
        assert time.monotonic() - began < SERVED_SECONDS
        csi.call("NodeUnpublishVolume", other.of("NodeUnpublishVolume"))
        assert not any(future.done() for future in futures)
    for future in futures:
        future.exception(PATIENCE)


def test_no_thread_of_a_crowd_stays(csi: CsiServer) -> None:
    live(csi, "NodeUnpublishVolume", "ext4")
    before = threading.active_count()
    with csi.hold(steps.Activate) as gate:
        futures = hung(csi, 130)
        assert gate.reached.wait(PATIENCE)
    for future in futures:
        future.exception(PATIENCE)
    until(lambda: threading.active_count() <= before + 5)


def test_beyond_their_number_calls_are_answered_at_once_and_say_what_runs(
    csi: CsiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission._AT_ONCE, admission.Kind.OTHER, 3)
    other = live(csi, "NodeUnpublishVolume", "ext4")
    with csi.hold(steps.Activate) as gate:
        futures = hung(csi, 3)
        assert gate.reached.wait(PATIENCE)
        wait_for_three = time.monotonic() + PATIENCE
        while (refusal := _status(csi, "GetCapacity", csi_pb2.GetCapacityRequest())) is None:
            assert time.monotonic() < wait_for_three
        assert refusal[0] is Code.UNAVAILABLE
        assert "3 calls run already (3 NodeStageVolume); this one was not begun" in refusal[1]
        csi.call("Probe", csi_pb2.ProbeRequest(), timeout=SERVED_SECONDS)
        csi.call("NodeUnpublishVolume", other.of("NodeUnpublishVolume"))
    for future in futures:
        future.exception(PATIENCE)
    csi.call("GetCapacity", csi_pb2.GetCapacityRequest())


def _status(csi: CsiServer, name: str, request: object) -> tuple[Code, str] | None:
    try:
        csi.call(name, request)
    except grpc.RpcError as error:
        return csi.checked_status(error)
    return None


@pytest.mark.parametrize("method", [f"/csi.v1.Node/{name}" for name in LIFE if name.startswith("NodeUn")])
def test_teardown_has_a_number_of_its_own(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(admission._AT_ONCE, admission.Kind.OTHER, 1)
    monkeypatch.setitem(admission._AT_ONCE, admission.Kind.TEARDOWN, 1)
    counted = Admission()
    with counted.running(DELETE), counted.running(method):
        with pytest.raises(Unavailable, match="1 DeleteVolume"), counted.running(DELETE):
            pass
        with pytest.raises(Unavailable, match=method.rpartition("/")[2]), counted.running(UNPUBLISH):
            pass
    with counted.running(DELETE), counted.running(UNPUBLISH):
        pass


def test_a_call_that_fails_is_counted_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(admission._AT_ONCE, admission.Kind.OTHER, 1)
    counted = Admission()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), counted.running(DELETE):
            raise ZeroDivisionError
