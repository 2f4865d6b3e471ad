"""Calls whose clients have given up make room: they wait for LVM no longer."""

import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from csi.node.rpc.proto import csi_pb2
from tests.fakes.csi_server import PATIENCE, CsiServer, serving
from tests.rpc.test_csi_server import Requests

CALLS = 140
"""More than the server has threads."""


def test_probe_answers_though_every_thread_had_waited_for_lvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as csi, csi.lvm.turns.group("vg0", "a wedged lvcreate"):
        request = Requests(csi).of("CreateVolume")
        waiting = [csi.method("CreateVolume").future(request, timeout=1.0) for _ in range(CALLS)]
        # Calls for one volume that meet in the moment before they wait turn one another away.
        codes = {future.code() for future in waiting}
        assert grpc.StatusCode.DEADLINE_EXCEEDED in codes
        assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED}
        csi.call("Probe", csi_pb2.ProbeRequest())
        _until(csi, lambda events: events.count("answer") == events.count("request"))


def test_a_call_whose_client_left_says_so_in_the_log_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch) as csi:
        with csi.lvm.turns.group("vg0", "a wedged lvcreate"):
            future = csi.method("CreateVolume").future(Requests(csi).of("CreateVolume"), timeout=PATIENCE)
            _until(csi, lambda events: "request" in events)
            future.cancel()
            _until(csi, lambda events: "answer" in events)
        assert "the caller went away while LVM was busy with 'a wedged lvcreate'" in csi.logged
        assert csi.node.lvs == {}


def test_who_only_looks_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as csi, csi.lvm.turns.group("vg0", "a wedged lvcreate"):
        csi.call("GetCapacity", csi_pb2.GetCapacityRequest())


def _until(csi: CsiServer, happened: Callable[[list[str]], bool]) -> None:
    """Wait for events in the log."""
    give_up = time.monotonic() + PATIENCE
    while not happened([one["event"] for one in csi.events]):
        assert time.monotonic() < give_up, csi.logged
        time.sleep(0.02)
