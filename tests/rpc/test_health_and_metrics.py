"""The pages that a kubelet probe and a Prometheus read over HTTP, as `csi.node.metrics` really serves them."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from csi.core.errors import InvalidInput, ToolFailed
from csi.node import config as node_config
from csi.node import metrics as metrics_page
from csi.node import parameters
from csi.node.lvm import names as volume_names
from csi.node.lvm.model import Report, UnreadableGroup
from csi.node.lvm.turns import Queue
from csi.node.metrics import Metrics, PoolStates
from csi.node.plan import provision
from csi.node.rpc.csi_requests import Wanted
from csi.node.rpc.proto import csi_pb2
from csi.node.standing import Standing
from csi.node.volume import State
from tests.fakes.csi_server import PATIENCE, serving
from tests.fakes.node import EXTENT, Node

ROOT = Path(__file__).resolve().parents[2]
CONFIG = node_config.parse("pools: [{name: main, vgs: [vg0], reserve: 10%}]", "a test")
GAUGES = {
    "sealed_local_vg_size_bytes",
    "sealed_local_vg_free_bytes",
    "sealed_local_vg_available_bytes",
    "sealed_local_vg_missing_disks",
    "sealed_local_vg_metadata_free_bytes",
    "sealed_local_vg_unreadable",
    "sealed_local_vg_strangers",
    "sealed_local_volumes",
}
QUEUES = {"sealed_local_lvm_queue_length", "sealed_local_lvm_holder"}
JOBS = {"sealed_local_jobs", "sealed_local_job_done_bytes", "sealed_local_job_of_bytes"}
OPERATIONS = "csi_plugin_operations_seconds"

Sample = tuple[str, frozenset[tuple[str, str]]]


@dataclass
class Page:
    """The served pages, and what stands behind them."""

    address: str
    metrics: Metrics
    node: Node
    faults: tuple[str, ...] = ()
    standing: Standing = field(init=False)
    broken: Exception | None = None
    looks: list[None] = field(default_factory=list)
    queues: dict[str, Queue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.standing = Standing(lambda: self.faults)

    def report(self) -> Report:
        self.looks.append(None)
        if self.broken is not None:
            raise self.broken
        return self.node.report()

    def get(self, path: str) -> tuple[int, str, str]:
        """Status, content type and body."""
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
        finally:
            connection.close()

    def samples(self) -> dict[Sample, float]:
        """The numbers on the metrics page."""
        families = text_string_to_metric_families(self.get("/metrics")[2])
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return f"127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def served(config: node_config.NodeConfig = CONFIG) -> Iterator[Page]:
    page = Page(address=free_address(), metrics=None, node=Node())  # type: ignore[arg-type]
    page.metrics = Metrics("sealed-local.csi", config, page.report, queues=lambda: page.queues)
    page.standing.started()
    stop = page.metrics.serve(page.address, page.standing)
    try:
        yield page
    finally:
        stop()


@pytest.fixture
def page() -> Iterator[Page]:
    with served() as made:
        yield made


def sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def make_volume(node: Node, name: str, state: State = State.CREATING) -> None:
    wanted = Wanted(
        name=name,
        volume_id=name,
        name_digest=volume_names.name_digest(name),
        size_bytes=EXTENT,
        limit_bytes=None,
        parameters=parameters.parse({}),
    )
    node.apply(provision.create(CONFIG, node.report(), wanted))
    lv = node.lvs[name]
    node.lvs[name] = replace(lv, tags=lv.tags - {"sl:state=creating"} | {f"sl:state={state}"})


def test_who_has_a_groups_turn_and_how_many_wait_is_shown_while_it_is_so(page: Page) -> None:
    page.queues = {"vg0": Queue(holder="lvcreate pvc-1", waiting=3), "vg1": Queue(holder="", waiting=1)}
    seen = page.samples()
    assert seen[sample("sealed_local_lvm_queue_length", vg="vg0")] == 3
    assert seen[sample("sealed_local_lvm_queue_length", vg="vg1")] == 1
    assert [key for key in seen if key[0] == "sealed_local_lvm_holder"] == [
        sample("sealed_local_lvm_holder", vg="vg0", holder="lvcreate")
    ]
    page.queues = {}
    assert {name for name, _ in page.samples()} & QUEUES == set()


def test_a_group_that_cannot_be_looked_into_is_told_and_so_is_the_room_for_metadata(page: Page) -> None:
    (vg,) = page.node.report().vgs
    lost = UnreadableGroup(name="vg1", disks=("/dev/sdb",), why="/dev/sdb does not answer")
    page.node.report = lambda: Report(vgs=(replace(vg, metadata_free_bytes=77),), unreadable=(lost,))  # type: ignore[method-assign]
    seen = page.samples()
    assert seen[sample("sealed_local_vg_metadata_free_bytes", vg="vg0", pool="main")] == 77
    assert seen[sample("sealed_local_vg_unreadable", vg="vg1", pool="")] == 1


def test_health_is_200_while_ready_and_503_while_not(page: Page) -> None:
    assert page.get("/healthz") == (200, "text/plain", "ok\n")
    page.faults = ("/dev is not the node's own",)
    page.standing.look()
    assert page.get("/healthz") == (
        503, "text/plain", "not ready: this node's driver can't work: /dev is not the node's own\n",
    )  # fmt: skip
    page.faults = ()
    page.standing.look()
    assert page.get("/healthz")[0] == 200
    page.standing.stopping()
    assert page.get("/healthz") == (503, "text/plain", "not ready\n")


def test_a_pool_that_lacks_something_is_shown_and_the_node_is_healthy_all_the_same(page: Page) -> None:
    page.metrics.registry.register(PoolStates(page.standing))
    page.standing.pool("main", None)
    page.standing.pool("bulk", "no device /dev/x")
    assert page.get("/healthz") == (200, "text/plain", "ok\npool bulk: no device /dev/x\n")
    ready = {name: value for name, value in page.samples().items() if name[0] == "sealed_local_pool_ready"}
    assert ready == {
        ("sealed_local_pool_ready", frozenset({("pool", "main")})): 1,
        ("sealed_local_pool_ready", frozenset({("pool", "bulk")})): 0,
    }


def test_health_does_not_ask_lvm(page: Page) -> None:
    page.broken = ToolFailed("lvm hangs")
    assert page.get("/healthz")[0] == 200
    assert page.looks == []


def test_health_answers_while_a_scrape_waits_for_lvm(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow() -> Report:
        asked.set()
        assert go_on.wait(PATIENCE)
        return Report(vgs=())

    monkeypatch.setattr(page.node, "report", slow)
    scrape = threading.Thread(target=page.get, args=("/metrics",))
    scrape.start()
    try:
        assert asked.wait(PATIENCE)
        assert page.get("/healthz")[0] == 200
        assert page.get("/metrics")[0] == 200, "another scrape doesn't wait, and doesn't run LVM beside the first"
        assert len(page.looks) == 1
    finally:
        go_on.set()
        scrape.join()


def test_health_answers_while_a_client_says_nothing(page: Page) -> None:
    host, _, port = page.address.rpartition(":")
    with socket.create_connection((host, int(port))):
        assert page.get("/healthz")[0] == 200


def test_a_client_that_says_nothing_is_sent_away(
    page: Page, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics_page._Quiet, "timeout", 0.1)
    host, _, port = page.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as silent:
        assert silent.recv(1) == b""
    assert page.get("/healthz")[0] == 200
    assert capsys.readouterr().err == ""


def test_operations_carry_the_labels_that_csi_dashboards_read(page: Page) -> None:
    page.metrics.observe("/csi.v1.Controller/CreateVolume", "OK", 0.2)
    page.metrics.observe("/csi.v1.Controller/CreateVolume", "OK", 700.0)
    page.metrics.observe("/csi.v1.Node/NodeStageVolume", "ABORTED", 0.01)
    labels = {"driver_name": "sealed-local.csi", "method_name": "/csi.v1.Controller/CreateVolume"}
    labels["grpc_status_code"] = "OK"
    found = page.samples()
    assert found[sample(f"{OPERATIONS}_count", **labels)] == 2
    assert found[sample(f"{OPERATIONS}_sum", **labels)] == pytest.approx(700.2)
    assert found[sample(f"{OPERATIONS}_bucket", le="0.1", **labels)] == 0
    assert found[sample(f"{OPERATIONS}_bucket", le="0.25", **labels)] == 1
    assert found[sample(f"{OPERATIONS}_bucket", le="600.0", **labels)] == 1
    assert found[sample(f"{OPERATIONS}_bucket", le="+Inf", **labels)] == 2
    other = labels | {"method_name": "/csi.v1.Node/NodeStageVolume", "grpc_status_code": "Aborted"}
    assert found[sample(f"{OPERATIONS}_count", **other)] == 1


def test_buckets_are_those_of_the_csi_sidecars(page: Page) -> None:
    page.metrics.observe("m", "OK", 1)
    bounds = {dict(labels)["le"] for name, labels in page.samples() if name == f"{OPERATIONS}_bucket"}
    sidecars = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600)
    assert bounds == {str(float(bound)) for bound in sidecars} | {"+Inf"}


def test_a_call_of_the_real_server_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as csi:
        csi.call("GetPluginInfo", csi_pb2.GetPluginInfoRequest())
        csi.refused("DeleteVolume", csi_pb2.DeleteVolumeRequest())
        page = Page(address=free_address(), metrics=csi.metrics, node=csi.node)
        stop = csi.metrics.serve(page.address, csi.standing)
        try:
            assert page.get("/healthz")[0] == 503
            csi.attempt()
            assert page.get("/healthz")[0] == 200
            counts = {
                dict(labels)["method_name"]: value
                for (name, labels), value in page.samples().items()
                if name == f"{OPERATIONS}_count"
            }
        finally:
            stop()
    assert counts == {"/csi.v1.Identity/GetPluginInfo": 1, "/csi.v1.Controller/DeleteVolume": 1}


def test_the_page_tells_size_free_and_available_room_of_a_group(page: Page) -> None:
    make_volume(page.node, "pvc-1")
    found = page.samples()
    labels = {"vg": "vg0", "pool": "main"}
    assert found[sample("sealed_local_vg_size_bytes", **labels)] == 1000 * EXTENT
    assert found[sample("sealed_local_vg_free_bytes", **labels)] == 999 * EXTENT
    assert found[sample("sealed_local_vg_available_bytes", **labels)] == 899 * EXTENT
    assert found[sample("sealed_local_vg_missing_disks", **labels)] == 0


def test_the_page_counts_volumes_by_state_and_no_foreign_ones(page: Page) -> None:
    for name, state in (("a", State.READY), ("b", State.READY), ("c", State.DELETING)):
        make_volume(page.node, name, state)
    page.node.lvs["root"] = replace(page.node.lvs["a"], name="root", tags=frozenset())
    found = page.samples()
    counted = {dict(labels)["state"]: n for (name, labels), n in found.items() if name == "sealed_local_volumes"}
    assert counted == {"ready": 2, "deleting": 1}


def test_the_page_counts_missing_disks(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    (vg,) = page.node.report().vgs
    lost = replace(vg, pvs=tuple(replace(pv, missing=True) for pv in vg.pvs))
    monkeypatch.setattr(page.node, "report", lambda: Report(vgs=(lost,)))
    found = page.samples()
    assert found[sample("sealed_local_vg_missing_disks", vg="vg0", pool="main")] == 1
    assert found[sample("sealed_local_vg_available_bytes", vg="vg0", pool="main")] == 0


def test_groups_of_one_name_are_not_on_the_page(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    (vg,) = page.node.report().vgs
    monkeypatch.setattr(page.node, "report", lambda: Report(vgs=(vg, vg)))
    assert page.get("/metrics")[0] == 200
    assert not [name for name, _ in page.samples() if name in GAUGES]


def test_the_page_holds_every_metric_and_no_other(page: Page) -> None:
    make_volume(page.node, "pvc-1")
    page.metrics.observe("m", "OK", 1)
    page.samples()
    families = {family.name for family in text_string_to_metric_families(page.get("/metrics")[2])}
    assert families == GAUGES | JOBS | QUEUES | {OPERATIONS, f"{OPERATIONS}_created"}


def test_a_group_that_the_driver_may_not_use_is_not_on_the_page() -> None:
    with served(node_config.parse("pools: [{name: main, vgs: [other]}]", "a test")) as page:
        assert page.get("/metrics")[0] == 200
        assert page.looks, "it did look"
        assert not [name for name, _ in page.samples() if name in GAUGES]


def test_a_group_outside_pools_has_an_empty_pool_label() -> None:
    with served(node_config.parse("listConfig: {vgs: {include: [vg0]}}", "a test")) as page:
        assert page.samples()[sample("sealed_local_vg_free_bytes", vg="vg0", pool="")] == 1000 * EXTENT


def test_reading_the_page_often_runs_lvm_once(page: Page) -> None:
    for _ in range(5):
        assert page.get("/metrics")[0] == 200
    assert len(page.looks) == 1


def test_the_page_is_there_without_lvm_and_still_has_the_operations(page: Page) -> None:
    page.broken = ToolFailed("lvm: not found on PATH")
    page.metrics.observe("m", "OK", 1)
    status, _, body = page.get("/metrics")
    assert status == 200
    assert f"{OPERATIONS}_count" in body
    assert not [name for name, _ in page.samples() if name in GAUGES]


def test_a_stopped_page_answers_nobody() -> None:
    with served() as page:
        assert page.get("/healthz")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        page.get("/healthz")


@pytest.mark.parametrize(
    "address",
    ["", "localhost", "localhost:", "localhost:http", "127.0.0.1:-1", ":99999", ":65536", ":²", f"{'ä' * 64}:1"],
)
def test_an_address_that_is_no_host_and_port_is_named(page: Page, address: str) -> None:
    with pytest.raises(InvalidInput, match="--metrics-address"):
        _stopped(page.metrics.serve(address, page.standing))


def test_an_address_in_use_is_named(page: Page) -> None:
    with pytest.raises(InvalidInput, match=r"--metrics-address: 127\.0\.0\.1:\d+ can't be used"):
        _stopped(page.metrics.serve(page.address, page.standing))


def _stopped(stop: Callable[[], None]) -> None:
    """A server that was started though it should not have been must not outlive its test."""
    stop()


def test_the_documentation_names_every_metric() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    assert not [name for name in GAUGES | QUEUES | {OPERATIONS} if f"`{name}" not in text]
