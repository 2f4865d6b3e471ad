"""Two brokers on one PostgreSQL: each volume has one owner, one lease and one history, whichever of them was asked."""

import asyncio
import collections
import contextlib
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from csi.broker import rules
from csi.broker.audit import Event
from csi.broker.directory import BrokerDirectory
from csi.core.errors import Busy, Unavailable
from csi.core.sealed import Profile
from csi.guest.attest.kbs_client import BrokerRegister
from csi.guest.broker_settings import BrokerSettings
from csi.kbs import volumes_api
from csi.kbs.register import VolumeRecord, VolumeState
from tests.fakes.broker import make_directory
from tests.fakes.broker_process import BrokerProcess
from tests.fakes.postgres import Server
from tests.fakes.registers import OnServer

VOLUMES = 1000
GUESTS = 100
_TRIES = 50


class Balancer:
    """What a Service with affinity is, for some of the clients: their connections go to the first broker, and to the next
    where that has gone.
    """

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        starts = asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
        self._server = asyncio.run_coroutine_threadsafe(starts, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Every connection ends."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        open_still = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_still:
            task.cancel()
        await asyncio.gather(*open_still, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            async with ended(writer):
                for port in self._ports:
                    try:
                        answers, requests = await asyncio.open_connection("127.0.0.1", port)
                    except OSError:
                        continue
                    async with ended(requests):
                        await asyncio.gather(_carry(reader, requests), _carry(answers, writer))
                    return


@contextlib.asynccontextmanager
async def ended(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Its connection is closed at the end of the block, whoever lost it."""
    try:
        yield
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Whichever side ends first ends both."""
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.transport.abort()


class Two:
    """Two broker processes, of directories that are copies, behind a balancer."""

    def __init__(self, root: Path, server: Server) -> None:
        self.register = OnServer(server, empty=True)
        first = make_directory(root / "first", conninfo=self.register.conninfo)
        shutil.copytree(first.root, root / "second")
        self.brokers = [BrokerProcess(first), BrokerProcess(BrokerDirectory(root / "second"))]
        ports = [broker.port for broker in self.brokers]
        self.balancers = [Balancer(ports), Balancer(ports[::-1])]

    def settings(self, client: int) -> BrokerSettings:
        """Every other client has the other broker."""
        return replace(self.brokers[0].settings(), url=f"https://127.0.0.1:{self.balancers[client % 2].port}")

    def stop(self) -> None:
        for balancer in self.balancers:
            balancer.stop()
        for broker in self.brokers:
            broker.close()


@pytest.fixture
def two(tmp_path: Path, postgres: Server) -> Iterator[Two]:
    made = Two(tmp_path, postgres)
    yield made
    made.stop()


@contextmanager
def guest_of(settings: BrokerSettings) -> Iterator[BrokerRegister]:
    with closing(BrokerRegister(settings)) as guest:
        yield guest


def until_heard(ask: Callable[[], VolumeRecord]) -> VolumeRecord:
    """A guest tries again for as long as nobody can say. Whatever is denied or refused is not: the test would hide it."""
    for _ in range(_TRIES):
        try:
            return ask()
        except Unavailable:
            continue
    return ask()


def begun(two: Two, number: int, done: Callable[[], None]) -> str:
    """A guest that opens a volume, takes its lease and begins to format; returns the lease."""
    secret = os.urandom(32).hex()
    with guest_of(two.settings(number)) as guest:
        record = until_heard(lambda: guest.open(f"pvc-{number}", Profile.XTS)[0])
        record = until_heard(lambda: guest.take_lease(record, secret))
        until_heard(lambda: guest.begin_format(record, nonce=secret, payload_bytes=4096)[0])
    done()
    return secret


class At:
    """Does something once, when so many have been counted."""

    def __init__(self, number: int, what: Callable[[], None]) -> None:
        self._number, self._what, self._lock, self.count = number, what, threading.Lock(), 0

    def __call__(self) -> None:
        with self._lock:
            self.count += 1
            due = self.count == self._number
        if due:
            self._what()


def test_a_thousand_volumes_are_opened_while_one_broker_is_killed(two: Two) -> None:
    """Each has the lease of its guest, and as many revisions as there were changes."""
    killed = At(VOLUMES // 2, two.brokers[0].kill)
    volumes = [f"pvc-{number}" for number in range(VOLUMES)]
    with ThreadPoolExecutor(VOLUMES) as threads:
        leases = list(threads.map(lambda number: begun(two, number, killed), range(VOLUMES)))
    assert killed.count == VOLUMES
    with closing(BrokerDirectory(two.brokers[1].directory.root).open_store()) as store:
        records, entries = {record.volume_id: record for record in store.volumes()}, store.audit_entries()
        assert store.verify_audit()[0] == len(entries)
    assert sorted(records) == sorted(volumes)
    for volume, lease in zip(volumes, leases, strict=True):
        record = records[volume]
        assert record.lease is not None
        assert record.lease.digest == volumes_api.lease_digest(lease)
        assert (record.state, record.revision) == (VolumeState.FORMATTING, 3)
    changes = collections.Counter((entry.event.subject, entry.event.action) for entry in entries if entry.revision)
    once = {(volume, action): 1 for volume in volumes for action in ("allocated", "lease-taken", "format-begun")}
    assert changes == once


def test_of_a_hundred_guests_one_gets_the_volume(two: Two) -> None:
    killed = At(GUESTS // 2, two.brokers[1].kill)

    def race(number: int) -> str | None:
        secret = os.urandom(32).hex()
        with guest_of(two.settings(number)) as guest:
            record = until_heard(lambda: guest.open("pvc-one", Profile.XTS)[0])
            killed()
            try:
                until_heard(lambda: guest.take_lease(record, secret))
            except Busy:
                return None
        return secret

    with ThreadPoolExecutor(GUESTS) as threads:
        (winner,) = (secret for secret in threads.map(race, range(GUESTS)) if secret is not None)
    with closing(two.brokers[0].directory.open_store()) as store:
        record = store.volume("pvc-one")
        taken = [entry for entry in store.audit_entries() if entry.event.action == "lease-taken"]
        store.verify_audit()
    assert record.lease is not None
    assert record.lease.digest == volumes_api.lease_digest(winner)
    assert len(taken) == 1


def test_a_session_of_the_one_broker_is_none_at_the_other_and_the_guest_attests_again(two: Two) -> None:
    """Its lease is the register's, so it goes on with that."""
    secret = os.urandom(32).hex()
    with guest_of(two.settings(0)) as guest, guest_of(two.settings(1)) as moved:
        record = guest.take_lease(guest.open("pvc-1", Profile.XTS)[0], secret)
        moved._cookie, moved._held, moved._leases = guest._cookie, guest._held, guest._leases
        moved._signer = guest._signer
        record, _ = moved.begin_format(record, nonce=secret, payload_bytes=4096)
        assert record.state is VolumeState.FORMATTING
        assert moved._cookie != guest._cookie


def test_entries_of_both_brokers_make_one_chain_and_nobody_has_to_repeat_one(postgres: Server) -> None:
    register, times = OnServer(postgres), 25
    stores = [register.open(), register.open()]

    def note(number: int) -> None:
        for time in range(times):
            event = Event(actor="test", action="allocated", subject=f"pvc-{number}-{time}")
            record = rules.allocate(event.subject, Profile.XTS)
            assert stores[number % 2].allocate(record, b"wrapped", event) is None

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(note, range(8)))
    assert stores[0].verify_audit()[0] == len(stores[1].volumes()) == 8 * times
    for store in stores:
        store.close()


def test_no_change_is_lost_between_two_brokers(postgres: Server) -> None:
    """Every thread reads a volume's record and writes one more than it read."""
    register, times = OnServer(postgres), 25
    event = Event(actor="test", action="counted", subject="pvc-1")
    stores = [register.open(), register.open()]
    stores[0].allocate(rules.allocate("pvc-1", Profile.XTS), b"wrapped", event)

    def count(number: int) -> None:
        for _ in range(times):
            stores[number % 2].change(
                "pvc-1", lambda now: replace(now, announced=now.announced + 1, revision=now.revision + 1), event
            )

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(count, range(8)))
    assert stores[0].volume("pvc-1").announced == 8 * times
    assert stores[0].verify_audit() == stores[1].verify_audit()
    for store in stores:
        store.close()
