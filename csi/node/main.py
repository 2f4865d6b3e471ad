"""`sealed-local node`: wires settings, desk and servicers together, serves until it is told to stop."""

import contextlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from csi.core import log, process
from csi.core.errors import InvalidInput, SealedLocalError
from csi.core.local_storage import Page
from csi.node import desk, local_storage, places, shown_disks, watch
from csi.node import settings as node_settings
from csi.node.desk import Desk
from csi.node.lvm.block_devices import BlockDevices
from csi.node.metrics import Metrics, PoolStates
from csi.node.rpc.admission import Admission, ThreadPerCall
from csi.node.rpc.controller import Controller
from csi.node.rpc.gate import Gate
from csi.node.rpc.identity import Identity
from csi.node.rpc.interceptors import Around
from csi.node.rpc.node import Node
from csi.node.rpc.proto import csi_pb2_grpc
from csi.node.settings import Settings
from csi.node.standing import Standing
from csi.node.startup import Startup
from csi.node.udev_rules import UdevRules

_log = logging.getLogger(__name__)

_STOP_SECONDS = 60.0
_SIGNAL_SECONDS = 0.5
"""How late a stop signal may be noticed."""


def main(arguments: Sequence[str]) -> int:
    """Run the node plugin; returns the exit status: 0 after an orderly stop, 2 for wrong settings."""
    try:
        settings = node_settings.load(arguments)
    except InvalidInput as error:
        print(f"sealed-local node: {error}", file=sys.stderr)
        return 2
    log.set_up(settings.log_level)
    try:
        return _serve(settings)
    except (SealedLocalError, OSError) as error:
        _log.error("can't start", extra={"error": str(error)})
        print(f"sealed-local node: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1


def _serve(settings: Settings) -> int:
    process.share_one_heap()
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    here = desk.real(settings)
    rules = UdevRules(settings.config, str(settings.kubelet_dir))
    standing = Standing(lambda: places.faults(settings), rules.cover)
    metrics = Metrics(
        settings.driver_name,
        settings.config,
        here.lvm.report,
        here.jobs.shown,
        here.lvm.turns.queues,
        conditions=here.conditions,
    )
    metrics.registry.register(PoolStates(standing))
    server = build_server(here, standing, metrics)
    # A handler may put into this queue; an Event it could not set without a deadlock, were its lock just held.
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: asked.put(got))
    page = _local_storage(settings, here)
    stop_pages = metrics.serve(settings.metrics_address, standing, page) if settings.metrics_address else None
    _bind(server, settings.endpoint)
    server.start()
    _log.info("serving", extra={"endpoint": settings.endpoint, "node_id": settings.node_id})
    keeping_up = _KeepingUp(here, standing, rules)
    _wait_for(asked)
    _log.info("stopping", extra={"waits_at_most_s": _STOP_SECONDS})
    give_up = time.monotonic() + _STOP_SECONDS
    keeping_up.end()
    standing.stopping()
    stopped = server.stop(_STOP_SECONDS)
    # Calls that wait for a job end with it.
    here.jobs.stop(_STOP_SECONDS)
    stopped.wait()
    keeping_up.join(give_up - time.monotonic())
    if stop_pages is not None:
        stop_pages()
    _log.info("stopped")
    return 0


def _local_storage(settings: Settings, here: Desk) -> Callable[[], Page]:
    """What makes the page that the cluster helper reads."""
    disks = BlockDevices()

    def page() -> Page:
        report = here.lvm.report()
        return local_storage.page(
            driver=settings.driver_name,
            node=settings.node_id,
            topology=settings.topology_value,
            config=settings.config,
            report=report,
            conditions=here.conditions(report),
            devices=shown_disks.shown(disks, loop_devices=settings.config.loop_devices),
        )

    return page


def _wait_for(asked: "queue.SimpleQueue[int]") -> None:
    """Wait for a stop signal. The kernel may give it to any thread, and only a main thread that wakes up then runs Python's
    handler, so it wakes up now and then.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            asked.get(timeout=_SIGNAL_SECONDS)
            return


def build_server(here: Desk, standing: Standing, metrics: Metrics) -> grpc.Server:
    """The gRPC server with all three CSI services, not bound and not started."""
    server = grpc.server(
        ThreadPerCall(),
        interceptors=[Around(metrics.observe), Admission(), Gate(standing.before_mounting)],
        options=[("grpc.so_reuseport", 0)],
    )
    csi_pb2_grpc.add_IdentityServicer_to_server(Identity(here.settings.driver_name, standing), server)
    csi_pb2_grpc.add_ControllerServicer_to_server(Controller(here), server)
    csi_pb2_grpc.add_NodeServicer_to_server(Node(here), server)
    return server


class _KeepingUp:
    """Starts up, and tries again what could not be done, until the program ends."""

    def __init__(self, here: Desk, standing: Standing, rules: UdevRules) -> None:
        self._devices = BlockDevices()
        self._loops = here.settings.config.loop_devices
        self._attempt = Startup(here, standing, rules.note).attempt
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work, name="start-up", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Begin no further attempt."""
        self._ends.set()

    def join(self, seconds: float) -> None:
        """Let an attempt end that may be making a pool's group. One that waits for a disk or for LVM's lock is left:
        nothing tells when that ends.
        """
        self._thread.join(max(0.0, seconds))

    def _work(self) -> None:
        watch.repeat(self._attempt, self._seen, self._ends.wait)

    def _seen(self) -> object:
        # kubelet puts a loop device on every raw block volume: no news of disks.
        return tuple(device for device in self._devices.now() if self._loops or not device.name.startswith("loop"))


def _bind(server: grpc.Server, endpoint: str) -> None:
    """Bind the socket so that only root can use it. gRPC replaces the file that a killed process left."""
    if not endpoint.startswith("unix:"):
        raise InvalidInput("--endpoint", f"{endpoint!r} is not a unix socket; write unix:///PATH/csi.sock")
    path = Path("/" + endpoint.removeprefix("unix:").lstrip("/"))
    if not path.parent.is_dir():
        raise InvalidInput("--endpoint", f"the directory {path.parent} does not exist")
    before = os.umask(0o077)
    try:
        bound = server.add_insecure_port(f"unix://{path}")
    except RuntimeError as error:
        raise InvalidInput("--endpoint", f"{path} can't be bound: {error}") from error
    finally:
        os.umask(before)
    if bound == 0:
        raise InvalidInput("--endpoint", f"{path} can't be bound")
