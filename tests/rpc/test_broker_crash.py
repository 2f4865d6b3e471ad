"""A broker process that is killed at any moment: what it answered stays, and a repeated request gets its answer."""

import hashlib
import itertools
import os
import random
import re
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from enum import Enum, auto
from pathlib import Path

import pytest

from csi.broker.directory import BrokerDirectory
from csi.core.errors import Unavailable
from csi.core.sealed import Profile
from csi.guest.attest.https import HttpsTransport, Response
from csi.guest.attest.kbs_client import BrokerRegister
from csi.kbs.register import VolumeRecord, VolumeState
from tests.fakes.broker import leased, make_directory
from tests.fakes.broker_process import BrokerProcess

KILLS = 12


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    process = BrokerProcess(make_directory(tmp_path / "broker"))
    yield process
    process.close()


def life(guest: BrokerRegister, volume: str) -> Iterator[VolumeRecord]:
    """A format and two opens, each change by itself."""
    record, _ = guest.open(volume, Profile.XTS)
    yield record
    record = leased(guest, record)
    yield record
    record, _ = guest.begin_format(record, nonce="f0" * 32, payload_bytes=4096)
    yield record
    record = guest.commit_format(record, nonce="f0" * 32, header=b"header".ljust(16 << 20, b"\0"), payload_bytes=4096)
    yield record
    for nonce in ("aa" * 32, "bb" * 32):
        record = guest.begin_open(record, nonce=nonce, generation=record.announced + 1)
        yield record
        record = guest.commit_open(record, nonce=nonce, generation=record.announced)
        yield record


def test_killed_between_any_two_changes_nothing_is_lost(broker: BrokerProcess) -> None:
    guest = BrokerRegister(broker.settings())
    records = life(guest, "pvc-1")
    _, secret = guest.open("pvc-1", Profile.XTS)
    for record in records:
        broker.kill()
        broker.restart()
        assert guest.open("pvc-1", Profile.XTS) == (record, secret)
    assert (record.state, record.generation, record.revision) == (VolumeState.ACTIVE, 3, 8)
    guest.close()
    store = BrokerDirectory(broker.directory.root).open_store()
    store.verify_audit()
    store.close()


class Moment(Enum):
    """When in a request the broker is killed."""

    BEFORE = auto()
    """The connection stands, the request was not sent."""
    SENT = auto()
    """The request was sent; how far it comes nobody knows."""
    WRITTEN = auto()
    """The database was just written to, and nothing was answered."""
    ANSWERED = auto()
    """The whole answer is there and is lost on its way."""


class KillingTransport(HttpsTransport):
    """Counts requests, and kills the broker in those that `moments` names by their number."""

    def __init__(self, broker: BrokerProcess, moments: dict[int, Moment]) -> None:
        settings = broker.settings()
        super().__init__(
            url=settings.url,
            ca_pem=settings.ca_pem,
            timeout_seconds=settings.timeout_seconds,
            max_body_bytes=1 << 20,
            sleep=lambda _: broker.wait_until_it_listens(),
        )
        self._broker = broker
        self._moments = moments
        self._count = 0
        self.killed: list[tuple[Moment, str]] = []

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
        self._count += 1
        moment = self._moments.get(self._count)
        if moment is None:
            return super()._once(method, path, body, headers)
        if moment is Moment.ANSWERED:
            super()._once(method, path, body, headers)
        else:
            connection = self._connected()
            before = self._written()
            if moment is not Moment.BEFORE:
                connection.request(method, path, body=body, headers=dict(headers))
            # Only requests about volumes are sure to write: attesting well leaves no trace.
            while moment is Moment.WRITTEN and "/volumes/" in path and self._written() == before:
                assert self._broker.process.poll() is None
        self._broker.kill()
        self._broker.restart()
        self.killed.append((moment, path))
        raise ConnectionResetError(f"the broker was killed: {moment.name}")

    def _written(self) -> list[tuple[str, int, int]]:
        """What changes in the database's files when something is written."""
        files = sorted(self._broker.directory.root.glob("broker.sqlite*"))
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def test_killed_inside_requests_a_guest_that_repeats_them_ends_well(broker: BrokerProcess) -> None:
    dice = random.Random(7)
    # A killed broker has forgotten its sessions: a repeated change takes up to five (refused, auth, attest, open,
    # itself), and three tries are made.
    numbers = itertools.accumulate(dice.randint(7, 10) for _ in range(KILLS))
    moments = dict(zip(numbers, itertools.cycle(Moment), strict=False))
    transport = KillingTransport(broker, moments)
    guest = BrokerRegister(broker.settings())
    guest._transport = transport
    lives = 0
    try:
        while len(transport.killed) < KILLS:
            for record in life(guest, f"pvc-{lives}"):
                last = record
            assert (last.state, last.generation, last.revision) == (VolumeState.ACTIVE, 3, 8)
            lives += 1
    finally:
        guest.close()
    assert {moment for moment, path in transport.killed if "/volumes/" in path} == set(Moment)
    store = BrokerDirectory(broker.directory.root).open_store()
    assert len(store.volumes()) == lives
    store.verify_audit()
    store.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_broker_that_is_told_to_stop_ends_in_order(broker: BrokerProcess, number: signal.Signals) -> None:
    guest = BrokerRegister(broker.settings(), sleep=lambda _: None)
    guest.open("pvc-1", Profile.XTS)
    assert broker.stop(number) == 0
    with pytest.raises(Unavailable):
        guest.open("pvc-1", Profile.XTS)
    guest.close()


def test_a_signal_that_comes_before_it_serves_is_not_lost(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "broker")
    text = (
        "import os, signal, sys\n"
        "from csi.__main__ import main\n"
        "from csi.broker.service import Broker\n"
        "note = Broker.note\n"
        "def interrupted(self, action, *rest):\n"
        "    note(self, action, *rest)\n"
        "    if action == 'started':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "Broker.note = interrupted\n"
        f"sys.exit(main(['broker', 'serve', {str(directory.root)!r}, '--listen', '127.0.0.1:0']))\n"
    )
    assert subprocess.run([sys.executable, "-c", text], timeout=20, check=False).returncode == 0
    with closing(directory.open_store()) as store:
        assert [entry.event.action for entry in store.audit_entries()] == ["started", "stopped"]


def test_the_policy_is_read_again_on_sighup_unless_it_is_broken(broker: BrokerProcess) -> None:
    guest = BrokerRegister(broker.settings(), sleep=lambda _: None)
    guest.open("pvc-1", Profile.XTS)
    good = broker.directory.policy.read_text()
    broker.directory.policy.write_text("broken")
    os.kill(broker.process.pid, signal.SIGHUP)
    wait_for(broker, "the old policy stays")
    guest.open("pvc-1", Profile.XTS)
    broker.directory.policy.write_text(good.replace("pvc-*", "other-*"))
    os.kill(broker.process.pid, signal.SIGHUP)
    wait_for(broker, "was read again")
    with pytest.raises(Exception, match="none of its patterns"):
        guest.open("pvc-1", Profile.XTS)
    assert "DEVELOPMENT ONLY" in Path(broker.log.name).read_text()
    guest.close()


def test_start_stop_and_policies_are_in_the_log(broker: BrokerProcess) -> None:
    good = broker.directory.policy.read_text()
    broker.directory.policy.write_text("broken")
    os.kill(broker.process.pid, signal.SIGHUP)
    wait_for(broker, "the old policy stays")
    broker.directory.policy.write_text(good)
    os.kill(broker.process.pid, signal.SIGHUP)
    wait_for(broker, "was read again")
    assert broker.stop(signal.SIGTERM) == 0
    with closing(broker.directory.open_store()) as store:
        entries = [entry.event for entry in store.audit_entries()]
        assert store.verify_audit()[0] == len(entries)
        assert store.epoch() in entries[0].detail
    assert [event.action for event in entries] == ["started", "policy-refused", "policy-loaded", "stopped"]
    assert hashlib.sha256(good.encode()).hexdigest() in entries[2].detail
    assert {event.actor for event in entries} == {"broker"}


def test_a_policy_is_read_again_while_the_database_is_locked(broker: BrokerProcess) -> None:
    with closing(sqlite3.connect(broker.directory.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        os.kill(broker.process.pid, signal.SIGHUP)
        wait_for(broker, "was read again")
        guest = BrokerRegister(broker.settings(), sleep=lambda _: None)
        context = ssl.create_default_context(cadata=broker.settings().ca_pem)
        with urllib.request.urlopen(f"{broker.settings().url}/healthz", context=context, timeout=5) as answer:
            assert answer.read() == b"ok\n"
        other.execute("ROLLBACK")
    guest.open("pvc-1", Profile.XTS)
    guest.close()


def a_directory(policy: Path) -> None:
    policy.unlink()
    policy.mkdir(mode=0o700)


BROKEN: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "a directory": a_directory,
    "not UTF-8": lambda policy: policy.write_bytes(b"version = 1 # \xff"),
    "deep": lambda policy: policy.write_text("version = " + "[" * 100_000),
    "a long number": lambda policy: policy.write_text("version = " + "9" * 5000),
    "a deep pattern": lambda policy: policy.write_text(
        policy.read_text().replace("pvc-*", "regex:" + "(" * 5000 + ")" * 5000)
    ),
    "a link to itself": lambda policy: (policy.unlink(), policy.symlink_to(policy)),
}


def test_no_policy_file_ends_the_broker_or_replaces_its_policy(broker: BrokerProcess) -> None:
    guest = BrokerRegister(broker.settings(), sleep=lambda _: None)
    policy = broker.directory.policy
    good = policy.read_text()
    for number, (name, spoil) in enumerate(BROKEN.items(), start=1):
        spoil(policy)
        os.kill(broker.process.pid, signal.SIGHUP)
        wait_for(broker, "the old policy stays", number)
        assert broker.process.poll() is None, name
        guest.open(f"pvc-{number}", Profile.XTS)
        policy.rmdir() if policy.is_dir() else policy.unlink(missing_ok=True)
        policy.write_text(good)
    guest.close()


def test_a_serving_broker_leaves_no_core_dump(broker: BrokerProcess) -> None:
    limits = Path(f"/proc/{broker.process.pid}/limits").read_text()
    # 1 byte is none, and forbids dumps to a pipe, too (core(5)).
    assert re.search(r"^Max core file size +([01]) +\1 ", limits, re.MULTILINE)


def wait_for(broker: BrokerProcess, text: str, times: int = 1) -> None:
    for _ in range(200):
        if Path(broker.log.name).read_text().count(text) >= times:
            return
        time.sleep(0.05)
    raise AssertionError(Path(broker.log.name).read_text())
