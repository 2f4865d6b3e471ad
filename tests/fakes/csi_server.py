"""The node plugin's real gRPC server on a unix socket, over the toy node of `tests.fakes.node`.

Real are: the servicers, the interceptor, the locks, the plans, the turn-taking of LVM, the log's formatter, the socket.
The toy stands where processes and system calls would be. A step can be held (`hold`) or made to fail (`failures`).
"""

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest

from csi.core import disks, log
from csi.core.device_number import DeviceNumber
from csi.node import main, observe
from csi.node import settings as node_settings
from csi.node.desk import Desk
from csi.node.jobs import Job, Jobs
from csi.node.kata.registry import Entry
from csi.node.locks import VolumeLocks
from csi.node.lvm.command import Lvm
from csi.node.lvm.model import Report
from csi.node.lvm.names import VolumeId
from csi.node.metrics import Metrics
from csi.node.plan import steps
from csi.node.plan.node_view import PathView, Publications
from csi.node.rpc.proto import csi_pb2_grpc
from csi.node.settings import Settings
from csi.node.staged_marks import StagedMarks
from csi.node.standing import Standing
from csi.node.startup import Startup
from csi.node.volume import Volume
from tests.fakes.node import Node

PATIENCE = 20.0
"""Seconds that a test waits for what must happen; only a broken server takes that long."""

DETAILS_TRAILER = "grpc-status-details-bin"
_CONFIG = "pools: [{name: main, vgs: [vg0]}]\n"

Event = dict[str, Any]


class NoTools:
    """A runner for code that must not run a process."""

    def run(self, argv: Any, **_: Any) -> Any:
        raise AssertionError(f"the toy node runs no process: {argv}")


class ToyLvm(Lvm):
    """LVM of the toy node, with the real rule of who may use it when."""

    def __init__(self, node: Node, lock_file: Path) -> None:
        super().__init__(NoTools(), udev=False, lock_file=lock_file)
        self._node = node
        self.broken: Exception | None = None

    def report(self) -> Report:
        if self.broken is not None:
            raise self.broken
        return self._node.report()

    def version(self) -> str:
        if self.broken is not None:
            raise self.broken
        return "toy"


class ToyRegistry:
    """Kata's registry as the toy node keeps it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def entries(self) -> Iterator[Entry]:
        for target, record in self._node.records.items():
            yield Entry(target=target, record=record)

    def at(self, target: str) -> Entry | None:
        return next((entry for entry in self.entries() if entry.target == target), None)

    def remove(self, target: str) -> None:
        self._node.records.pop(target, None)


@dataclass
class Gate:
    """Holds a step: `reached` is set when it begins, and it goes on when `release` is set."""

    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass
class Observed:
    """What the metrics were told of one call."""

    method: str
    code: str
    seconds: float


class Recorder(Metrics):
    """The real metrics, which also remember each call."""

    def __init__(self, settings: Settings, report: Callable[[], Report], jobs: Callable[[], tuple[Job, ...]]) -> None:
        super().__init__(settings.driver_name, settings.config, report, jobs)
        self.calls: list[Observed] = []

    def observe(self, method: str, code: str, seconds: float) -> None:
        self.calls.append(Observed(method, code, seconds))
        super().observe(method, code, seconds)


class CsiServer:
    """The running server, its stubs, and everything around it that a test looks at."""

    def __init__(self, folder: Path, config: str = _CONFIG) -> None:
        self.node = Node()
        self.kubelet = folder / "kubelet"
        self.kubelet.mkdir()
        (folder / "node.yaml").write_text(config)
        self.settings = node_settings.load(
            [
                *("--node-id", "node-1", "--config", str(folder / "node.yaml")),
                *("--kubelet-dir", str(self.kubelet), "--state-dir", str(folder)),
                *("--kata-registry", str(folder / "registry"), "--max-volumes", "7"),
            ],
            {},
        )
        self.lvm = ToyLvm(self.node, folder / "lvm.lock")
        self.failures: dict[type, Exception] = {}
        self.faults: tuple[str, ...] = ()
        self._gates: dict[type, Gate] = {}
        self.desk = Desk(
            settings=self.settings,
            runner=NoTools(),
            lvm=self.lvm,
            registry=ToyRegistry(self.node),  # type: ignore[arg-type]
            handlers=dict.fromkeys(get_args(steps.Step), self._carry_out),
            locks=VolumeLocks(),
            jobs=Jobs(),
        )
        self.standing = Standing(lambda: self.faults)
        self.metrics = Recorder(self.settings, self.lvm.report, self.desk.jobs.shown)
        self.server = main.build_server(self.desk, self.standing, self.metrics)
        self._startup = Startup(self.desk, self.standing)
        self.socket = folder / "csi.sock"
        self._text = io.StringIO()
        self.log_handler = logging.StreamHandler(self._text)
        self.log_handler.setFormatter(log.JsonFormatter())

    def start(self) -> None:
        """Bind, serve and connect."""
        main._bind(self.server, f"unix://{self.socket}")
        self.server.start()
        self.channel = grpc.insecure_channel(f"unix://{self.socket}")
        self.identity_stub = csi_pb2_grpc.IdentityStub(self.channel)
        self.controller = csi_pb2_grpc.ControllerStub(self.channel)
        self.node_stub = csi_pb2_grpc.NodeStub(self.channel)

    def attempt(self) -> bool:
        """The start-up, once. A repetition is another call of the same object in the real program."""
        return self._startup.attempt()

    def stop(self) -> None:
        """Let held steps go and end."""
        for gate in self._gates.values():
            gate.release.set()
        self.desk.jobs.stop(PATIENCE)
        self.channel.close()
        self.server.stop(PATIENCE).wait()

    def call(self, name: str, request: Any, timeout: float = PATIENCE) -> Any:
        """The answer to a call by its name in the specification."""
        return self.method(name)(request, timeout=timeout)

    def method(self, name: str) -> Any:
        """The client's method of that name, of whichever service has it."""
        stubs = (self.identity_stub, self.controller, self.node_stub)
        return next(getattr(stub, name) for stub in stubs if hasattr(stub, name))

    def refused(self, name: str, request: Any, timeout: float = PATIENCE) -> tuple[grpc.StatusCode, str]:
        """Code and message of a call that must fail. What holds for every failure is checked here."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(name, request, timeout)
        return self.checked_status(caught.value)

    @staticmethod
    def checked_status(error: Any) -> tuple[grpc.StatusCode, str]:
        """Code and message of a failed call: the message is never empty, and `details` always is."""
        message = error.details()
        assert message, f"{error.code()} came without a message"
        assert DETAILS_TRAILER not in {key for key, _ in error.trailing_metadata() or ()}
        return error.code(), message

    @contextmanager
    def hold(self, step: type) -> Iterator[Gate]:
        """While inside, steps of this type stop at their beginning until `release` is set."""
        gate = self._gates[step] = Gate()
        try:
            yield gate
        finally:
            gate.release.set()
            del self._gates[step]

    @contextmanager
    def running(self, name: str, request: Any, step: type) -> Iterator[grpc.Future]:
        """A call that hangs in `step` while inside, and afterwards has ended."""
        with self.hold(step) as gate:
            future = self.method(name).future(request, timeout=PATIENCE)
            assert gate.reached.wait(PATIENCE), f"{name} never came to {step.__name__}: {future.code()}"
            yield future
        future.exception(PATIENCE)

    @property
    def logged(self) -> str:
        """The log so far, as the driver would write it to standard error."""
        return self._text.getvalue()

    @property
    def events(self) -> list[Event]:
        """The log so far, one dictionary a line."""
        return [json.loads(line) for line in self.logged.splitlines()]

    def _carry_out(self, step: Any) -> None:
        gate = self._gates.get(type(step))
        if gate is not None:
            gate.reached.set()
            assert gate.release.wait(PATIENCE), "a test forgot to release a step"
        if type(step) in self.failures:
            raise self.failures[type(step)]
        self.node.apply((step,))


@contextmanager
def serving(folder: Path, patch: pytest.MonkeyPatch, config: str = _CONFIG) -> Iterator[CsiServer]:
    """A running server whose looks at the node go to the toy, with the whole log of the driver at level debug."""
    made = CsiServer(folder, config)
    node = made.node

    def path(value: str, listed: object) -> PathView:
        return node.path(value)

    def publications(
        entries: object, listed: object, volume_id: VolumeId, devices: object, staging_path: str = ""
    ) -> Publications:
        return node.publications(volume_id, staging_path)

    def alive(volume: Volume, report: object) -> Volume:
        return replace(volume, live=node.live(volume.lv.name))

    def mounted_at(path: str) -> DeviceNumber | None:
        top = node.path(path).top
        return top.device if top is not None else None

    patch.setattr(observe, "path", path)
    patch.setattr(observe, "publications", publications)
    patch.setattr(StagedMarks, "path_of", lambda self, volume_id: node.staged.get(volume_id))
    patch.setattr(observe, "alive", alive)
    patch.setattr(observe, "devices", node.active)
    patch.setattr(observe, "place", lambda view, volume_id, owners: node.place(view.path))
    patch.setattr(observe, "mounted_at", mounted_at)
    patch.setattr(disks, "number", lambda path: node.path(path).device)
    patch.setattr(observe, "node_is_right", lambda volume: volume.live is not None)
    patch.setattr(observe, "is_volume", lambda device, name: device is not None and device == node.devices.get(name))
    patch.setattr(disks, "size", lambda path: 4096)
    logger = logging.getLogger("csi")
    before = logger.level
    logger.addHandler(made.log_handler)
    logger.setLevel(logging.DEBUG)
    made.start()
    try:
        yield made
    finally:
        made.stop()
        logger.removeHandler(made.log_handler)
        logger.setLevel(before)
