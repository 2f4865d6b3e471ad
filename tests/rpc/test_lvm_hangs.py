"""An `lvm` that hangs: what the kernel alone can answer goes on, the rest waits or is Unavailable, nothing piles up.

Real are the server, LVM's turn-taking, the runner and the process: `lvm` is a script in the place of `--lvm-prefix`.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi.core import command
from csi.core.command import LocalRunner
from csi.node.lvm import command as lvm_command
from csi.node.lvm import proved
from csi.node.lvm.command import Lvm
from csi.node.rpc.proto import csi_pb2
from tests.fakes.csi_server import PATIENCE, CsiServer, serving
from tests.fakes.one_group import DISK, OneGroup
from tests.rpc.test_csi_server import LIFE, Requests, live

Code = grpc.StatusCode
GIVEN_UP = 3
"""So many commands that hang for good, and no other is started."""


class HangingLvm:
    """Puts a script in the place of lvm, which says its process number and never ends by itself."""

    def __init__(self, csi: CsiServer, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._started, self._over = folder / "started", folder / "over"
        os.mkfifo(self._started)
        self._pipe = os.open(self._started, os.O_RDWR | os.O_NONBLOCK)
        self._text = b""
        self.pids: list[int] = []
        program = folder / "hanging"
        program.write_text(f"#!/bin/sh\necho $$ 1<>{self._started}\n[ -e {self._over} ] && exit 5\nexec sleep 1000\n")
        program.chmod(0o755)
        patch.setattr(proved, "_PATIENCE_SECONDS", PATIENCE)
        real = Lvm(LocalRunner((str(program),)), udev=False, lock_file=folder / "lvm.lock", devices=lambda: [DISK])
        patch.setattr(real._proved, "_views", OneGroup())
        patch.setattr(csi.lvm, "report", real.report)
        patch.setattr(csi.lvm, "version", real.version)

    def wait_for(self, number: int) -> int:
        """The process number of the n-th command, when it runs."""
        os.set_blocking(self._pipe, True)
        while self._text.count(b"\n") < number:
            self._text += os.read(self._pipe, 4096)
        self.pids = [int(line) for line in self._text.split()]
        return self.pids[number - 1]

    @property
    def count(self) -> int:
        """How many commands have begun so far."""
        self._look()
        return len(self.pids)

    def _look(self) -> None:
        os.set_blocking(self._pipe, False)
        with contextlib.suppress(BlockingIOError):
            self._text += os.read(self._pipe, 4096)
        self.pids = [int(line) for line in self._text.split()]

    def end(self) -> None:
        """End what still hangs, and let nothing hang that a waiting call starts from now on."""
        self._over.touch()
        self._look()
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._pipe)


@pytest.fixture
def csi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CsiServer]:
    with serving(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def volumes(csi: CsiServer) -> list[Requests]:
    """Volumes that are published already: one mounted, one as a block device."""
    mounted, block = live(csi, "NodeUnpublishVolume"), Requests(csi, "block", "pvc-block")
    Path(mounted.target).mkdir(parents=True)
    for call in LIFE[: LIFE.index("NodeUnpublishVolume")]:
        csi.call(call, block.of(call))
    return [mounted, block]


@pytest.fixture
def hanging(
    csi: CsiServer, volumes: list[Requests], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HangingLvm]:
    """From here on lvm hangs."""
    made = HangingLvm(csi, tmp_path, monkeypatch)
    yield made
    made.end()


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A SIGKILL of the runner does nothing, as in the kernel's uninterruptible sleep."""
    children: list[subprocess.Popen[bytes]] = []
    start = command._start

    def started(*given: Any) -> subprocess.Popen[bytes]:
        children.append(start(*given))
        return children[-1]

    monkeypatch.setattr(command, "_start", started)
    monkeypatch.setattr(command.os, "killpg", lambda *_: None)
    monkeypatch.setattr(command, "_GIVE_UP_ON_PIPES_SECONDS", 0.05)
    yield
    for child in children:
        child.kill()
        child.wait()


def give_up(csi: CsiServer, hanging: HangingLvm, patch: pytest.MonkeyPatch) -> None:
    """Calls until so many commands hang that no other is started."""
    patch.setattr(lvm_command, "_READ_SECONDS", 0.5)
    for number in range(1, GIVEN_UP + 1):
        assert csi.call("GetCapacity", Requests(csi).of("GetCapacity")).available_capacity == 0
        hanging.wait_for(number)


def test_statistics_and_identity_go_on_while_lvm_hangs(
    csi: CsiServer, volumes: list[Requests], hanging: HangingLvm
) -> None:
    waiting = csi.controller.GetCapacity.future(Requests(csi).of("GetCapacity"), timeout=PATIENCE)
    hanging.wait_for(1)
    for requests in volumes:
        assert csi.call("NodeGetVolumeStats", requests.of("NodeGetVolumeStats")).usage
    for name in ("GetPluginInfo", "GetPluginCapabilities", "Probe", "NodeGetInfo", "NodeGetCapabilities"):
        csi.call(name, getattr(csi_pb2, f"{name}Request")())
    assert not waiting.done()
    assert hanging.count == 1, "a call that needs no LVM has started it"
    os.kill(hanging.pids[0], signal.SIGKILL)
    assert waiting.result(PATIENCE).available_capacity == 0


def test_who_needs_lvm_waits_for_the_one_that_hangs_and_starts_no_other(
    csi: CsiServer, volumes: list[Requests], hanging: HangingLvm
) -> None:
    waiting = csi.controller.GetCapacity.future(Requests(csi).of("GetCapacity"), timeout=PATIENCE)
    pid = hanging.wait_for(1)
    code, _ = csi.refused("NodePublishVolume", volumes[0].of("NodePublishVolume"), timeout=0.5)
    assert code is Code.DEADLINE_EXCEEDED
    assert hanging.count == 1
    os.kill(pid, signal.SIGKILL)
    assert waiting.result(PATIENCE).available_capacity == 0


@pytest.mark.usefixtures("unkillable")
def test_after_three_that_nobody_can_kill_calls_are_unavailable_at_once_and_the_rest_goes_on(
    csi: CsiServer, volumes: list[Requests], hanging: HangingLvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(csi, hanging, monkeypatch)
    for name in ("NodePublishVolume", "NodeStageVolume", "CreateVolume", "DeleteVolume"):
        code, message = csi.refused(name, volumes[0].of(name))
        assert code is Code.UNAVAILABLE, name
        assert f"can't be killed (processes {', '.join(map(str, hanging.pids))})" in message
    assert hanging.count == GIVEN_UP, "another command was started on a disk that does not answer"
    for requests in volumes:
        assert csi.call("NodeGetVolumeStats", requests.of("NodeGetVolumeStats")).usage
        csi.call("NodeUnpublishVolume", requests.of("NodeUnpublishVolume"))
        csi.call("NodeUnstageVolume", requests.of("NodeUnstageVolume"))
    assert hanging.count == GIVEN_UP, "to take a volume down needs no LVM"


@pytest.mark.usefixtures("unkillable")
def test_when_one_of_them_ends_the_next_call_is_tried_again(
    csi: CsiServer, hanging: HangingLvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(csi, hanging, monkeypatch)
    os.kill(hanging.pids[0], signal.SIGKILL)
    os.waitid(os.P_PID, hanging.pids[0], os.WEXITED | os.WNOWAIT)
    csi.call("GetCapacity", Requests(csi).of("GetCapacity"))
    assert hanging.wait_for(GIVEN_UP + 1)


@pytest.mark.usefixtures("hanging")
def test_commands_that_a_kill_ends_do_not_count(
    csi: CsiServer, volumes: list[Requests], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvm_command, "_READ_SECONDS", 0.1)
    for _ in range(GIVEN_UP + 2):
        code, message = csi.refused("NodePublishVolume", volumes[0].of("NodePublishVolume"))
        assert code is Code.UNAVAILABLE
        assert "volume group vg0 can't be looked into: " in message
        assert "no end after 0.1 s" in message


def test_who_waits_for_one_group_is_told_after_a_while_and_starts_no_other(
    csi: CsiServer, volumes: list[Requests], hanging: HangingLvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proved, "_PATIENCE_SECONDS", 0.2)
    for _ in range(3):
        code, message = csi.refused("NodePublishVolume", volumes[0].of("NodePublishVolume"))
        assert code is Code.UNAVAILABLE
        assert "LVM did not answer within 0.2 s" in message
    assert hanging.wait_for(1)
    assert hanging.count == 1
