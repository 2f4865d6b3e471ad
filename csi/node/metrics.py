"""The metrics page and the health page of the node plugin. `docs/metrics.md` lists every name."""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from csi.core import local_storage as local_storage_page
from csi.core.errors import InvalidInput, SealedLocalError
from csi.core.local_storage import Page
from csi.node import observe
from csi.node.config import NodeConfig
from csi.node.jobs import Job
from csi.node.lvm import tags as volume_tags
from csi.node.lvm.model import LogicalVolume, Report
from csi.node.lvm.turns import Queue
from csi.node.plan import placement
from csi.node.plan.target import Conditions
from csi.node.standing import Standing
from csi.node.volume import Volume

_log = logging.getLogger(__name__)
_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600)
_PORT = re.compile("[0-9]{1,5}")
_LAST_PORT = 65535
_REPORT_AGE_SECONDS = 30.0
_SILENCE_SECONDS = 10.0
Conditioned = Callable[[Report], Conditions]


class Metrics:
    """Operation durations under the name that dashboards of other CSI drivers use, and gauges of the node's groups."""

    def __init__(
        self,
        driver_name: str,
        config: NodeConfig,
        report: Callable[[], Report],
        jobs: Callable[[], tuple[Job, ...]] = tuple,
        queues: Callable[[], Mapping[str, Queue]] = dict,
        *,
        conditions: Conditioned = observe.conditions,
    ) -> None:
        self.registry = CollectorRegistry()
        self._driver_name = driver_name
        self._operations = Histogram(
            "csi_plugin_operations_seconds",
            "Duration of CSI calls by method and gRPC code",
            ["driver_name", "method_name", "grpc_status_code"],
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self.registry.register(_Groups(config, report, conditions))
        self.registry.register(_JobGauges(jobs))
        self.registry.register(_QueueGauges(queues))

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Count one finished call. `code` is the name of gRPC's status code in Python."""
        self._operations.labels(self._driver_name, method, _as_go_writes(code)).observe(seconds)

    def serve(
        self, address: str, standing: Standing, local_storage: Callable[[], Page] | None = None
    ) -> Callable[[], None]:
        """Serve `/metrics`, `/healthz` and, where it is given, the page of `csi.core.local_storage` on HOST:PORT.

        Answers the function that stops it. Raises `InvalidInput` for an address that can't be used.
        """
        host, _, port = address.rpartition(":")
        if _PORT.fullmatch(port) is None or int(port) > _LAST_PORT:
            raise InvalidInput("--metrics-address", f"{address!r} is no HOST:PORT")
        try:
            server = make_server(
                host or "0.0.0.0", int(port), _pages(self.registry, standing, local_storage), _Server, _Quiet
            )
        except (OSError, UnicodeError, TypeError) as error:
            why = error.strerror if isinstance(error, OSError) else "its host is no name"
            raise InvalidInput("--metrics-address", f"{address} can't be used: {why}") from error
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

        def stop() -> None:
            server.shutdown()
            server.server_close()

        return stop


def _as_go_writes(code: str) -> str:
    """`RESOURCE_EXHAUSTED` as `ResourceExhausted`: what Kubernetes' own sidecars, and so the dashboards, call it."""
    if code in ("OK", "CANCELLED"):
        return {"OK": "OK", "CANCELLED": "Canceled"}[code]
    return "".join(word.capitalize() for word in code.split("_"))


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each reader: a scrape may wait for LVM, and the probe of health must not wait with it."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away or said nothing is no event for the standard error stream."""
        _log.debug("a reader of the pages failed", exc_info=True, extra={"client": str(client_address)})


class _Quiet(WSGIRequestHandler):
    timeout = _SILENCE_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """A scrape is no event."""


def _pages(
    registry: CollectorRegistry, standing: Standing, local_storage: Callable[[], Page] | None
) -> Callable[..., Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def page(environ: dict[str, str], start_response: Callable[..., object]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") == "/healthz":
            status = "200 OK" if standing.ready else "503 Service Unavailable"
            start_response(status, [("Content-Type", "text/plain")])
            return [standing.words().encode(errors="backslashreplace")]
        if environ.get("PATH_INFO") == local_storage_page.PATH and local_storage is not None:
            return _local_storage(local_storage, start_response)
        body: Iterable[bytes] = metrics(environ, start_response)
        return body

    return page


def _local_storage(look: Callable[[], Page], start_response: Callable[..., object]) -> Iterable[bytes]:
    try:
        body = local_storage_page.encode(look())
    except (SealedLocalError, OSError) as error:
        # Why it failed may name other groups of the node; whoever may know reads the log.
        _log.warning("no page without LVM's report", extra={"error": str(error)})
        start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"LVM does not answer; see the driver's log\n"]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]


class _JobGauges(Collector):
    """Long work of this moment. A series is there while there is such a job."""

    def __init__(self, jobs: Callable[[], tuple[Job, ...]]) -> None:
        self._jobs = jobs

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        jobs = self._jobs()
        count = GaugeMetricFamily(
            "sealed_local_jobs", "Wipes and clearings in the background", labels=["kind", "vg", "state"]
        )
        done = GaugeMetricFamily("sealed_local_job_done_bytes", "What they have erased so far", labels=["kind", "vg"])
        of = GaugeMetricFamily("sealed_local_job_of_bytes", "What they have to erase in all", labels=["kind", "vg"])
        for labels, number in Counter((job.kind, job.vg, job.state) for job in jobs).items():
            count.add_metric(labels, number)
        for kind, vg in sorted({(job.kind, job.vg) for job in jobs}):
            these = [job for job in jobs if (job.kind, job.vg) == (kind, vg)]
            done.add_metric([kind, vg], sum(job.done_bytes for job in these))
            of.add_metric([kind, vg], sum(job.of_bytes for job in these))
        return [count, done, of]


def _state(lv: LogicalVolume) -> str:
    """The state of a volume of ours, `unreadable` where that can't be told; nothing for an LV of somebody else."""
    found = volume_tags.decode(lv)
    return "" if found is None else found.state if isinstance(found, Volume) else "unreadable"


class _QueueGauges(Collector):
    """Who changes which group now, and how many wait. A series is there while somebody does."""

    def __init__(self, queues: Callable[[], Mapping[str, Queue]]) -> None:
        self._queues = queues

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        length = GaugeMetricFamily(
            "sealed_local_lvm_queue_length", "Calls that wait for their turn to change a group", labels=["vg"]
        )
        holder = GaugeMetricFamily(
            "sealed_local_lvm_holder", "What has the turn to change a group", labels=["vg", "holder"]
        )
        for vg, queue in sorted(self._queues().items()):
            length.add_metric([vg], queue.waiting)
            if queue.holder:
                # Without the volume's name: each would be a series of its own.
                holder.add_metric([vg, queue.holder.split(" ")[0]], 1)
        return [length, holder]


class PoolStates(Collector):
    """A gauge for every pool: 1 when all its groups and disks are there, 0 when something lacks."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        ready = GaugeMetricFamily("sealed_local_pool_ready", "Whether a pool is whole", labels=["pool"])
        for name, lacks in self._standing.pools.items():
            ready.add_metric([name], int(lacks is None))
        return [ready]


class _Groups(Collector):
    """Gauges from LVM's own report, made at most every half minute however often the page is read."""

    def __init__(self, config: NodeConfig, report: Callable[[], Report], conditions: Conditioned) -> None:
        self._config = config
        self._conditions = conditions
        self._report = report
        self._last: Report | None = None
        self._at = float("-inf")
        self._looking = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Named without looking, so that registering does not run LVM."""
        return []

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        size = GaugeMetricFamily("sealed_local_vg_size_bytes", "Size of a volume group", labels=["vg", "pool"])
        free = GaugeMetricFamily("sealed_local_vg_free_bytes", "Free bytes of a volume group", labels=["vg", "pool"])
        room = GaugeMetricFamily(
            "sealed_local_vg_available_bytes",
            "Free bytes that new volumes may take (reserve kept)",
            labels=["vg", "pool"],
        )
        broken = GaugeMetricFamily("sealed_local_vg_missing_disks", "Disks missing from a group", labels=["vg", "pool"])
        text = GaugeMetricFamily(
            "sealed_local_vg_metadata_free_bytes", "By how much a group's metadata may grow", labels=["vg", "pool"]
        )
        lost = GaugeMetricFamily(
            "sealed_local_vg_unreadable", "Groups that nobody can look into now", labels=["vg", "pool"]
        )
        count = GaugeMetricFamily("sealed_local_volumes", "Volumes of this driver by state", labels=["vg", "state"])
        report = self._fresh() or Report(vgs=())
        targets = placement.all_targets(self._config, report, self._conditions(report))
        rooms = {target.vg.name: target.room for target in targets}
        for vg in report.vgs:
            if vg.name not in rooms:
                continue
            labels = self._labels(vg.name)
            size.add_metric(labels, vg.size_bytes)
            free.add_metric(labels, vg.free_bytes)
            room.add_metric(labels, rooms[vg.name])
            broken.add_metric(labels, vg.missing_disks)
            if vg.metadata_free_bytes is not None:
                text.add_metric(labels, vg.metadata_free_bytes)
            for state, number in sorted(Counter(_state(lv) for lv in vg.lvs).items()):
                if state:
                    count.add_metric([vg.name, state], number)
        for group in report.unreadable:
            lost.add_metric(self._labels(group.name), 1)
        return [size, free, room, broken, text, lost, self._strangers(report), count]

    def _strangers(self, report: Report) -> Metric:
        found = GaugeMetricFamily(
            "sealed_local_vg_strangers",
            "Groups that have a group's name and are not this node's",
            labels=["vg", "pool"],
        )
        for name, number in Counter(stranger.vg.name for stranger in report.strangers).items():
            found.add_metric(self._labels(name), number)
        return found

    def _labels(self, vg: str) -> list[str]:
        pool = self._config.pool_of(vg)
        return [vg, pool.name if pool is not None else ""]

    def _fresh(self) -> Report | None:
        """The last report, renewed when it is old. While one reader waits for LVM, others get the one before."""
        if self._looking.acquire(blocking=False):
            try:
                self._renew()
            finally:
                self._looking.release()
        return self._last

    def _renew(self) -> None:
        if time.monotonic() - self._at > _REPORT_AGE_SECONDS:
            try:
                self._last = self._report()
            except SealedLocalError as error:
                _log.warning("metrics without LVM's report", extra={"error": str(error)})
            self._at = time.monotonic()
