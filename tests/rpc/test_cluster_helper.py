"""The cluster helper against an API server on a socket: lists, watches that end, conflicts, and the lease of one."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from csi.cluster import main as cluster_main
from csi.cluster import settings as cluster_settings
from csi.cluster.api import lease as leases
from csi.cluster.api.client import Api, ApiRefused, Server
from csi.cluster.api.lease import LeaseKeeper
from csi.cluster.api.watched import Watched
from csi.cluster.helper import Helper
from csi.cluster.objects import Node
from csi.cluster.settings import Settings
from csi.core import local_storage
from csi.core.errors import InvalidInput, Unavailable
from csi.core.local_storage import Page, VolumeGroup
from tests.fakes import api_server
from tests.fakes.api_server import ApiServer

PATIENCE = 30.0
NODES = "/api/v1/nodes"
STORAGES = "/apis/csi.aliyun.com/v1alpha1/nodelocalstorages"
EVENTS = "/api/v1/namespaces/shop/events"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/storage/leases/sealed-local-cluster"
REPORT = "/api/v1/namespaces/storage/configmaps/sealed-local-cluster-sealed-volumes"
KEY = "topology.sealed-local.csi/node"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server.serving() as made:
        yield made


@pytest.fixture
def ends() -> Iterator[threading.Event]:
    """Ends what a test began."""
    made = threading.Event()
    yield made
    made.set()


def settings_of(server: ApiServer, *more: str) -> Settings:
    given = ["--namespace=storage", "--identity=me", f"--server={server.url}", *more]
    return cluster_settings.load(given, {})


def api_of(server: ApiServer) -> Api:
    return Api(settings_of(server).server)


class Clock:
    """Tells what it was told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# Watches


class Follower:
    """A watch of nodes in a thread of its own; each change of it can be waited for."""

    def __init__(self, server: ApiServer, ends: threading.Event, *, optional: bool = False) -> None:
        self.changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.watched = Watched(api_of(server), NODES, Node, lambda: self.changes.put(None), optional=optional)
        self.pauses: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._ends = ends
        threading.Thread(target=self.watched.follow, args=(self._pause,), daemon=True).start()

    def _pause(self, seconds: float) -> bool:
        """No test waits: a pause is only noted."""
        self.pauses.put(seconds)
        return self._ends.wait(0.01)

    def until(self, names: set[str]) -> None:
        while {one.metadata.name for one in self.watched.items} != names:
            self.changes.get(timeout=PATIENCE)


def test_a_list_in_parts_is_read_to_its_end_and_followed(server: ApiServer, ends: threading.Event) -> None:
    for name in ("a", "b", "c", "d", "e"):
        server.put(f"{NODES}/{name}", {})
    follower = Follower(server, ends)
    follower.until({"a", "b", "c", "d", "e"})
    assert server.count("GET", NODES) == 3
    server.put(f"{NODES}/f", {})
    server.remove(f"{NODES}/a")
    follower.until({"b", "c", "d", "e", "f"})
    assert server.count("GET", NODES) == 3


def test_a_lost_connection_goes_on_where_it_was_without_a_new_list(server: ApiServer, ends: threading.Event) -> None:
    server.put(f"{NODES}/a", {})
    follower = Follower(server, ends)
    follower.until({"a"})
    server.wait_for("WATCH", NODES)
    server.cut()
    assert follower.pauses.get(timeout=PATIENCE) > 1, "it waits longer after a failure"
    server.put(f"{NODES}/b", {})
    follower.until({"a", "b"})
    assert server.count("GET", NODES) == 1
    assert server.count("WATCH", NODES) > 1


def test_a_version_that_is_too_old_makes_it_read_the_list_again(server: ApiServer, ends: threading.Event) -> None:
    server.put(f"{NODES}/a", {})
    follower = Follower(server, ends)
    follower.until({"a"})
    # What is deleted now is in no watch that could still be had.
    server.objects.pop(f"{NODES}/a")
    server.put(f"{NODES}/b", {})
    server.forget()
    follower.until({"b"})
    assert server.count("GET", NODES) == 2


def test_what_was_read_stays_while_the_server_refuses(server: ApiServer, ends: threading.Event) -> None:
    server.put(f"{NODES}/a", {})
    follower = Follower(server, ends)
    follower.until({"a"})
    server.refuse("GET", NODES, 500, times=2)
    server.forget()
    server.put(f"{NODES}/b", {})
    follower.until({"a", "b"})
    assert server.count("GET", NODES) == 4


def test_an_object_that_cannot_be_read_does_not_hide_the_others(server: ApiServer, ends: threading.Event) -> None:
    server.put(f"{NODES}/a", {"metadata": {"labels": 5}})
    server.put(f"{NODES}/b", {})
    follower = Follower(server, ends)
    follower.until({"b"})
    server.put(f"{NODES}/a", {"metadata": {"labels": {}}})
    follower.until({"a", "b"})


def test_a_kind_that_the_cluster_does_not_know_is_read_and_empty(server: ApiServer, ends: threading.Event) -> None:
    server.unknown.add(NODES)
    follower = Follower(server, ends, optional=True)
    assert follower.watched.read.wait(PATIENCE)
    assert (follower.watched.unknown, follower.watched.items) == (True, ())
    server.unknown.clear()
    server.put(f"{NODES}/a", {})
    follower.until({"a"})
    assert not follower.watched.unknown


def test_a_kind_that_must_be_there_is_not_read_before_it_was(server: ApiServer, ends: threading.Event) -> None:
    server.unknown.add(NODES)
    follower = Follower(server, ends)
    follower.pauses.get(timeout=PATIENCE)
    assert not follower.watched.read.is_set()


# Requests


def test_the_token_is_read_for_each_request_and_sent_by_https_alone(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="https"):
        Api(Server(url="http://127.0.0.1:1", account=tmp_path))
    given = ["--namespace=a", "--identity=b"]
    service = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    server = cluster_settings.load(given, service).server
    assert (server.url, server.account is None) == ("https://[fd00::1]:443", False)
    with pytest.raises(InvalidInput, match="this is no pod"):
        cluster_settings.load(given, {})


@pytest.mark.parametrize("url", ["ftp://x", "https://", "nonsense", "https://h/path"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="--server"):
        Api(Server(url=url))


def test_a_server_that_is_not_there_is_unavailable_and_a_refusal_says_why(server: ApiServer) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        Api(Server(url="http://127.0.0.1:9", account=None)).get(NODES)
    server.refuse("GET", NODES, 403)
    with pytest.raises(ApiRefused, match="403: refused on demand"):
        api_of(server).get(NODES)


def test_only_the_object_that_is_meant_is_deleted(server: ApiServer) -> None:
    made = server.put(f"{NODES}/a", {})
    api_of(server).delete(f"{NODES}/a", "another")
    assert f"{NODES}/a" in server.objects
    api_of(server).delete(f"{NODES}/a", made["metadata"]["uid"])
    api_of(server).delete(f"{NODES}/a", made["metadata"]["uid"])
    assert f"{NODES}/a" not in server.objects


# The lease


def keeper(server: ApiServer, name: str, clock: Clock) -> LeaseKeeper:
    return LeaseKeeper(api_of(server), "storage", "sealed-local-cluster", name, clock)


def test_one_has_the_lease_and_another_takes_it_only_after_a_whole_silence(server: ApiServer) -> None:
    clock = Clock()
    first, second = keeper(server, "first", clock), keeper(server, "second", clock)
    assert first.attempt()
    assert not second.attempt()
    clock.now = leases.DURATION_SECONDS - 1
    assert not second.attempt()
    assert not first.held, "the holder stops before anybody may take it"
    clock.now = leases.DURATION_SECONDS
    assert second.attempt()
    assert not first.attempt()
    spec = server.objects[LEASE]["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 2)


def test_a_renewal_begins_the_wait_of_others_anew(server: ApiServer) -> None:
    clock = Clock()
    first, second = keeper(server, "first", clock), keeper(server, "second", clock)
    first.attempt()
    second.attempt()
    clock.now = 9
    assert first.attempt()
    # A renewal at the same time of day is another version of the object all the same.
    clock.now = 14
    assert not second.attempt()
    clock.now = 14 + leases.DURATION_SECONDS - 1
    assert not second.attempt()


def test_a_conflict_leaves_the_lease_to_the_faster_one(server: ApiServer) -> None:
    clock = Clock()
    first, second = keeper(server, "first", clock), keeper(server, "second", clock)
    first.attempt()
    second.attempt()
    clock.now = leases.DURATION_SECONDS
    server.refuse("PUT", LEASE, 409)
    assert not second.attempt()
    assert second.attempt()


def test_a_renewal_that_comes_between_a_look_and_its_write_wins(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    first, second = keeper(server, "first", clock), keeper(server, "second", clock)
    first.attempt()
    second.attempt()
    clock.now = leases.DURATION_SECONDS
    look = second._look

    def slow() -> leases.LeaseObject | None:
        seen = look()
        assert first.attempt(), "the holder was only late, and renews now"
        return seen

    monkeypatch.setattr(second, "_look", slow)
    assert not second.attempt()
    assert server.objects[LEASE]["spec"]["holderIdentity"] == "first"


def test_one_that_is_given_back_is_taken_at_once(server: ApiServer) -> None:
    clock = Clock()
    first, second = keeper(server, "first", clock), keeper(server, "second", clock)
    first.attempt()
    second.attempt()
    first.give_up()
    assert not first.held
    assert second.attempt()


def test_a_server_that_does_not_answer_ends_the_holding_in_time(server: ApiServer) -> None:
    clock = Clock()
    holder = keeper(server, "first", clock)
    assert holder.attempt()
    server.refuse("GET", LEASE, 500, times=99)
    clock.now = leases.RENEW_WITHIN_SECONDS - 0.5
    assert holder.attempt()
    clock.now = leases.RENEW_WITHIN_SECONDS
    assert not holder.attempt()


def test_a_lost_lease_ends_the_program_with_1_and_a_signal_with_0(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_main, "_TURN_SECONDS", 0.01)
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    asked.put(15)
    assert cluster_main.run(settings_of(server), api_of(server), asked) == 0
    assert server.objects[LEASE]["spec"]["holderIdentity"] == "", "given back"
    held = iter([True, True])
    monkeypatch.setattr(LeaseKeeper, "held", property(lambda _: next(held, False)))
    assert cluster_main.run(settings_of(server), api_of(server), asked) == 1


# Rounds


def page(*volumes: str) -> bytes:
    held = tuple(local_storage.Volume(id=one, vg="vg0", total=2**30) for one in volumes)
    groups = (VolumeGroup(name="vg0", total=10, available=5),)
    return local_storage.encode(
        Page(driver="sealed-local.csi", node="n1", topology="n1", complete=True, groups=groups, volumes=held)
    )


class Helping:
    """A helper whose rounds a test calls for."""

    def __init__(self, server: ApiServer, ends: threading.Event, *more: str) -> None:
        self.clock = Clock()
        self.may_act = True
        self.asked: list[str] = []
        self.page: Callable[[], bytes] = page
        settings = settings_of(server, *more)
        self.helper = Helper(api_of(server), settings, lambda: self.may_act, self._fetch, self.clock)
        self.helper.follow(ends.wait)
        for one in self.helper._watches.all:
            assert one.read.wait(PATIENCE), one.path

    def _fetch(self, address: str) -> bytes:
        self.asked.append(address)
        return self.page()

    def turn(self, seconds: float = 60) -> None:
        self.clock.now += seconds
        assert self.helper.turn()

    def knows(self, kind: str, name: str) -> None:
        """Wait until a watch has told of an object."""
        watched: Any = getattr(self.helper._watches, kind)
        for _ in range(int(PATIENCE / 0.02)):
            if name in {one.metadata.name for one in watched.items}:
                return
            threading.Event().wait(0.02)
        pytest.fail(f"no {kind} {name}")


def plugin(server: ApiServer, **status: Any) -> None:
    labels = {"app.kubernetes.io/name": "sealed-local", "app.kubernetes.io/component": "node"}
    server.put(
        "/api/v1/namespaces/storage/pods/plugin",
        {
            "metadata": {"namespace": "storage", "labels": labels},
            "spec": {"nodeName": "n1"},
            "status": {"podIP": "10.0.0.7", **status},
        },
    )


def persistent_volume(server: ApiServer, name: str, **more: Any) -> None:
    requirement = {"key": KEY, "operator": "In", "values": ["n1"]}
    server.put(
        f"/api/v1/persistentvolumes/{name}",
        {
            "metadata": more.pop("metadata", {}),
            "spec": {
                "claimRef": {"namespace": "shop", "name": "data", "uid": "u-data"},
                "csi": {"driver": "sealed-local.csi", "volumeHandle": name, "volumeAttributes": {"sealed": "xts"}},
                "persistentVolumeReclaimPolicy": "Delete",
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}},
            },
            **more,
        },
    )


def claim(server: ApiServer) -> str:
    path = "/api/v1/namespaces/shop/persistentvolumeclaims/data"
    server.put(
        path,
        {
            "metadata": {"namespace": "shop", "uid": "u-data"},
            "spec": {"storageClassName": "sealed", "volumeName": "pvc-1"},
        },
    )
    return path


def node(server: ApiServer) -> None:
    server.put(f"{NODES}/n1", {"metadata": {"labels": {KEY: "n1"}}})


def test_a_nodes_object_is_made_and_filled_from_its_page(server: ApiServer, ends: threading.Event) -> None:
    node(server)
    plugin(server)
    helping = Helping(server, ends)
    helping.turn()
    assert helping.asked == ["10.0.0.7"]
    helping.knows("storages", "n1")
    helping.turn()
    made = server.objects[f"{STORAGES}/n1"]
    assert made["spec"] == {"nodeName": "n1"}
    assert made["status"]["nodeStorageInfo"]["volumeGroups"][0]["name"] == "vg0"
    assert made["status"]["nodeStorageInfo"]["state"]["type"] == "DiskReady"


def test_a_pod_that_is_not_the_plugins_own_speaks_for_no_node(server: ApiServer, ends: threading.Event) -> None:
    node(server)
    plugin(server)
    stranger = server.objects["/api/v1/namespaces/storage/pods/plugin"]
    server.put(
        "/api/v1/namespaces/shop/pods/liar",
        {**stranger, "metadata": {**stranger["metadata"], "namespace": "shop", "name": "liar"}},
    )
    server.remove("/api/v1/namespaces/storage/pods/plugin")
    helping = Helping(server, ends)
    helping.turn()
    assert helping.asked == []


def test_a_page_of_another_node_is_not_believed(server: ApiServer, ends: threading.Event) -> None:
    node(server)
    plugin(server)
    helping = Helping(server, ends)
    server.put(f"{NODES}/n2", {})
    helping.knows("nodes", "n2")
    helping.page = lambda: page().replace(b'"n1"', b'"n2"')
    helping.turn()
    assert f"{STORAGES}/n2" not in server.objects
    assert f"{STORAGES}/n1" not in server.objects


def test_an_event_is_written_once_and_an_existing_one_is_no_error(server: ApiServer, ends: threading.Event) -> None:
    claim(server)
    persistent_volume(server, "pvc-1")
    server.put(
        "/api/v1/namespaces/shop/pods/web",
        {
            "metadata": {"namespace": "shop", "uid": "u-web"},
            "spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]},
        },
    )
    helping = Helping(server, ends)
    helping.turn()
    helping.turn()
    assert server.count("POST", EVENTS) == 1
    [event] = server.under(EVENTS)
    assert (event["reason"], event["type"]) == ("RuntimeClassNeeded", "Warning")
    assert event["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "u-web", "namespace": "shop",
    }  # fmt: skip
    assert "only an attested Kata guest can open it" in event["message"]
    helping.turn(600)
    assert server.count("POST", EVENTS) == 2
    assert len(server.under(EVENTS)) == 1


def test_nothing_is_done_without_the_lease(server: ApiServer, ends: threading.Event) -> None:
    node(server)
    plugin(server)
    persistent_volume(server, "pvc-1")
    helping = Helping(server, ends)
    helping.may_act = False
    helping.turn()
    assert {verb for verb, _ in server.requests} <= {"GET", "WATCH"}


def test_a_refused_act_keeps_none_of_the_others_from_being_done(server: ApiServer, ends: threading.Event) -> None:
    node(server)
    plugin(server)
    persistent_volume(server, "pvc-1")
    server.refuse("POST", STORAGES, 403)
    helping = Helping(server, ends)
    helping.turn()
    assert REPORT in server.objects
    helping.turn()
    assert f"{STORAGES}/n1" in server.objects


def test_the_report_outlives_the_helper_and_is_written_only_when_something_changed(
    server: ApiServer, ends: threading.Event
) -> None:
    claim(server)
    persistent_volume(server, "pvc-1")
    helping = Helping(server, ends)
    helping.turn()
    helping.turn()
    version = server.objects[REPORT]["metadata"]["resourceVersion"]
    helping.turn()
    assert server.count("GET", REPORT) == 1, "asked only when there is something to write"
    assert "claimDeleted" not in server.objects[REPORT]["data"]["pvc-1"]
    server.remove("/api/v1/persistentvolumes/pvc-1")
    Helping(server, ends).turn()
    entry = msgspec.json.decode(server.objects[REPORT]["data"]["pvc-1"])
    assert (entry["namespace"], entry["claim"], entry["profile"]) == ("shop", "data", "xts")
    assert entry["volumeDeleted"]
    assert server.objects[REPORT]["metadata"]["resourceVersion"] != version


def test_a_released_node_leaves_neither_claim_nor_volume(server: ApiServer, ends: threading.Event) -> None:
    server.put(f"{NODES}/n2", {})
    path = claim(server)
    finalizers = ["kubernetes.io/pv-protection", "external-provisioner.volume.kubernetes.io/finalizer"]
    persistent_volume(server, "pvc-1", metadata={"finalizers": finalizers})
    helping = Helping(server, ends, "--release-after=100")
    helping.turn()
    helping.turn(99)
    assert path in server.objects
    helping.turn(60)
    assert path not in server.objects
    # Kubernetes sees that the claim is gone, and deletion waits for the finalizers.
    persistent_volume(
        server,
        "pvc-1",
        metadata={"finalizers": finalizers, "deletionTimestamp": "2026-01-01T00:00:00Z"},
        status={"phase": "Released"},
    )
    helping.turn()
    while helping.helper._watches.volumes.items[0].status.phase != "Released":
        threading.Event().wait(0.02)
    helping.turn()
    assert server.objects["/api/v1/persistentvolumes/pvc-1"]["metadata"]["finalizers"] == finalizers[:1]


def test_a_round_has_a_reason(server: ApiServer, ends: threading.Event) -> None:
    helping = Helping(server, ends)
    helping.turn()
    helping.clock.now += 1
    assert not helping.helper.turn()
    node(server)
    helping.knows("nodes", "n1")
    assert helping.helper.turn()
