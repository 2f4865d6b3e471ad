"""A server that fails, hangs, or is behind: nothing answered is lost, nobody waits for ever, no lease is given twice."""

import hashlib
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi.broker import deadline, leases, postgres
from csi.broker import rules as register
from csi.broker.audit import Event
from csi.broker.directory import BrokerDirectory
from csi.broker.main import main
from csi.broker.postgres import Postgres
from csi.broker.signs import Signs
from csi.broker.store import Store
from csi.core.errors import Busy, InvalidInput, NotFound, Refused, Unavailable
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.kbs.register import Lease, VolumeRecord
from tests.fakes.broker import make_directory
from tests.fakes.postgres import Server
from tests.fakes.postgres import server as new_server
from tests.fakes.registers import OnServer

EVENT = Event(actor="test", action="tested", subject="pvc-1")
PATIENCE = 20.0
"""Far more than any deadline here, and far less than for ever."""


@pytest.fixture
def own() -> Iterator[Server]:
    """A server that the test may treat as it likes."""
    with new_server() as running:
        yield running


@pytest.fixture
def store(postgres: Server) -> Iterator[Store]:
    with closing(OnServer(postgres).open()) as opened:
        yield opened


def test_a_server_that_was_started_again_costs_no_request(own: Server) -> None:
    with closing(OnServer(own).open()) as store:
        store.note(EVENT)
        own.kill()
        with pytest.raises(Unavailable):
            store.note(EVENT)
        with pytest.raises(Unavailable):
            store.probe()
        own.start()
        store.note(EVENT)
        own.kill()
        own.start()
        store.note(EVENT)
        assert store.verify_audit()[0] == 3


def test_a_server_that_fails_inside_a_change_leaves_it_undone(own: Server) -> None:
    with closing(OnServer(own).open()) as store:
        store.allocate(register.allocate("pvc-1", Profile.XTS), b"wrapped", EVENT)

        def killing(record: VolumeRecord) -> VolumeRecord:
            own.kill()
            return register.retire(record)

        with pytest.raises(Unavailable, match="try again"):
            store.change("pvc-1", killing, EVENT)
        own.start()
        assert store.volume("pvc-1").revision == 1
        assert store.change("pvc-1", register.retire, EVENT).revision == 2
        assert store.verify_audit()[0] == 2


@contextmanager
def silent(server: Server) -> Iterator[None]:
    """The server takes connections, as the kernel does for it, and never says a word."""
    with closing(server.connect("postgres")) as link:
        backends = [pid for (pid,) in link.execute("SELECT pid FROM pg_stat_activity WHERE application_name <> ''")]
    server.signal(signal.SIGSTOP, backends)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT, backends)


def test_nobody_waits_longer_than_the_request_for_a_server_that_says_nothing(own: Server) -> None:
    with closing(OnServer(own).open()) as store:
        store.note(EVENT)
        began = time.monotonic()
        with silent(own):
            with deadline.within(0.2), pytest.raises(Unavailable):
                store.note(EVENT)
            with pytest.raises(Unavailable):
                store.probe()
        assert time.monotonic() - began < PATIENCE
        store.note(EVENT)
        store.probe()


def test_where_nothing_can_be_written_the_broker_is_not_ready(own: Server) -> None:
    made = OnServer(own)
    with closing(own.connect("postgres")) as link:
        link.execute(f"ALTER DATABASE {made.name} SET default_transaction_read_only = on".encode())
    with closing(made.open()) as store, pytest.raises(Unavailable, match="takes no changes"):
        store.probe()


def test_requests_beyond_the_connections_wait_until_their_deadline_only(store: Store) -> None:
    places = store._database._places  # type: ignore[attr-defined]
    for _ in range(postgres._CONNECTIONS):
        places.acquire()
    with deadline.within(0.05), pytest.raises(Unavailable, match="all connections"):
        store.note(EVENT)
    store.probe()
    places.release()
    store.note(EVENT)


def test_nothing_that_is_no_register_is_taken_for_one(postgres: Server) -> None:
    empty = postgres.register()
    with pytest.raises(NotFound, match="has no register"):
        Postgres(empty)
    made = OnServer(postgres)
    made.other_hands("UPDATE register_version SET version = 2")
    with pytest.raises(Refused, match="version 2; this program has 1"):
        made.open()
    made.other_hands("DROP TABLE headers")
    with pytest.raises(Refused, match="it lacks headers"):
        made.open()


def test_a_password_is_in_no_error() -> None:
    with pytest.raises(InvalidInput) as caught:
        Postgres(Secret(b"host=/nowhere password=hunter2 nonsense"))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(Unavailable) as unreachable:
        Postgres(Secret(b"host=/nowhere password=hunter2"))
    assert "hunter2" not in str(unreachable.value)


def test_what_is_answered_is_flushed_whatever_the_server_is_set_to(own: Server) -> None:
    made = OnServer(own)
    with closing(own.connect("postgres")) as link:
        link.execute(f"ALTER DATABASE {made.name} SET synchronous_commit = off".encode())
    with closing(made.open()) as store, store._database.changing("test") as rows:
        assert rows.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_init_makes_a_register_once_and_never_in_the_place_of_a_lost_one(tmp_path: Path, own: Server) -> None:
    name = own.new_database()
    words = ["init", str(tmp_path / "broker"), "--database", own.conninfo(name)]
    assert main(words) == 0
    directory = BrokerDirectory(tmp_path / "broker")
    assert directory.conninfo.stat().st_mode & 0o777 == 0o600
    assert not directory.database.exists()
    with closing(directory.load_broker({}).store) as store:
        epoch = store.epoch()
    assert main(words) == 0
    with closing(directory.open_store()) as store:
        assert store.epoch() == epoch
    assert main([*words[:3], own.conninfo("another")]) == 1
    with closing(own.connect(name)) as link:
        link.execute("DROP SCHEMA public CASCADE")
        link.execute("CREATE SCHEMA public")
    assert main(words) == 1
    with pytest.raises(NotFound):
        directory.open_store()


def test_another_directory_without_the_keys_does_not_get_the_register(tmp_path: Path, own: Server) -> None:
    conninfo = own.register()
    directory = make_directory(tmp_path / "first", conninfo=conninfo)
    directory.load_broker({}).close()
    with closing(directory.open_store()) as store:
        store.note(EVENT)
    with pytest.raises(Refused, match=r"audit\.key is gone"):
        make_directory(tmp_path / "second", conninfo=conninfo)


def test_a_restore_waits_for_no_broker_and_no_broker_comes_between(tmp_path: Path, own: Server) -> None:
    directory = make_directory(tmp_path / "first", conninfo=own.register())
    assert main(["backup", str(tmp_path / "kept"), "--dir", str(directory.root)]) == 0
    conninfo = directory.load_conninfo()
    assert conninfo is not None
    with closing(Postgres(conninfo)), pytest.raises(Busy, match="stop every one"), postgres.sole(conninfo):
        pass
    with postgres.sole(conninfo), pytest.raises(Busy, match="a restore is at work"):
        Postgres(conninfo)


@dataclass
class Clock:
    now: float

    def __call__(self) -> float:
        return self.now


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Broker:
    """What of a broker gives leases: a store, and its own clock, which tells nothing about any other's."""

    def __init__(self, made: OnServer, start: float) -> None:
        self.store = made.open()
        self.clock = Clock(start)
        self.signs = Signs(self.store.here, self.clock)

    def take(self, name: str) -> None:
        wanted = Lease(digest=digest(name), holder=name, seconds=30)

        def rule(record: VolumeRecord) -> VolumeRecord:
            taken = leases.take(
                record, wanted, instead=None, remaining=lambda held: self.signs.remaining("pvc-1", held)
            )
            self.signs.extend("pvc-1", wanted)
            return taken

        self.store.change("pvc-1", rule, EVENT)

    def renew(self, name: str) -> None:
        def rule(record: VolumeRecord) -> VolumeRecord:
            self.signs.extend("pvc-1", leases.hold(record, digest(name)))
            return record

        self.store.change("pvc-1", rule, EVENT)


class Pair:
    """Two brokers, and time that passes for both."""

    def __init__(self, server: Server) -> None:
        made = OnServer(server)
        self.made = made
        self.a, self.b = Broker(made, 1_000.0), Broker(made, 7.0)
        self.a.store.allocate(register.allocate("pvc-1", Profile.XTS), b"wrapped", EVENT)

    def later(self, seconds: float) -> None:
        self.a.clock.now += seconds
        self.b.clock.now += seconds

    def close(self) -> None:
        self.a.store.close()
        self.b.store.close()


@pytest.fixture
def pair(postgres: Server) -> Iterator[Pair]:
    with closing(Pair(postgres)) as made:
        yield made


def test_a_renewal_at_the_one_broker_counts_at_the_other(pair: Pair) -> None:
    pair.a.take("first")
    for _ in range(5):
        with pytest.raises(Busy, match="lasts 30 s more"):
            pair.b.take("second")
        pair.later(29)
        pair.a.renew("first")
    pair.later(29)
    with pytest.raises(Busy):
        pair.b.take("second")


def test_a_broker_counts_a_lease_of_the_other_from_its_first_look(pair: Pair) -> None:
    pair.a.take("first")
    pair.later(1000)
    with pytest.raises(Busy, match="lasts 30 s more"):
        pair.b.take("second")
    pair.later(29)
    with pytest.raises(Busy, match="lasts 1 s more"):
        pair.b.take("second")
    pair.later(1)
    pair.b.take("second")
    with pytest.raises(Busy):
        pair.a.take("third")


def test_the_broker_that_saw_the_last_sign_of_life_counts_from_that(pair: Pair) -> None:
    pair.a.take("first")
    pair.later(10)
    pair.a.renew("first")
    pair.later(30)
    pair.a.take("second")


def test_a_change_that_is_not_stored_is_no_sign_of_life(pair: Pair) -> None:
    pair.a.take("first")
    with pytest.raises(Busy):
        pair.b.take("second")
    pair.later(29)

    def dying(record: VolumeRecord) -> VolumeRecord:
        pair.a.signs.extend("pvc-1", leases.hold(record, digest("first")))
        raise Unavailable("no")

    with pytest.raises(Unavailable):
        pair.a.store.change("pvc-1", dying, EVENT)
    pair.later(1)
    pair.b.take("second")


def test_a_server_in_the_place_of_another_may_be_behind_so_leases_last_once_more(own: Server) -> None:
    """A standby that took over shows an older sign than the one that was renewed last; it has to age anew."""
    with closing(Pair(own)) as pair:
        pair.a.take("first")
        with pytest.raises(Busy):
            pair.b.take("second")
        pair.later(30)
        own.kill()
        own.start()
        with pytest.raises(Busy, match="lasts 30 s more"):
            pair.b.take("second")
        pair.later(30)
        pair.b.take("second")
