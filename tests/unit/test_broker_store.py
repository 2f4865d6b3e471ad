"""The store loses nothing that it has answered, destroys what it says it destroyed, and its audit log shows tampering."""

import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from csi.broker import audit, deadline
from csi.broker import rules as register
from csi.broker.audit import GENESIS, Event, Ration
from csi.broker.database import BUSY_SECONDS
from csi.broker.store import Store
from csi.core.errors import NotFound, Refused, Tampered, Unavailable
from csi.core.sealed import Profile
from csi.kbs.register import VolumeRecord, VolumeState
from tests.fakes.postgres import Server
from tests.fakes.registers import SEALS, OneFile, OnServer, Register

EVENT = Event(actor="test", action="tested", subject="pvc-1")
ALLOCATED = register.allocate("pvc-1", Profile.XTS)
WRAPPED = b"wrapped-secret-bytes-that-are-easy-to-find-again"


@pytest.fixture(params=["sqlite", "postgresql"])
def register_(request: pytest.FixtureRequest, tmp_path: Path) -> Register:
    """An empty register, in each database."""
    return OneFile(tmp_path) if request.param == "sqlite" else OnServer(request.getfixturevalue("postgres"))


@pytest.fixture
def store(register_: Register) -> Iterator[Store]:
    with closing(register_.open(clock=lambda: 1000.9)) as opened:
        yield opened


def begin(nonce: str, revision: int = 1):  # type: ignore[no-untyped-def]
    return lambda record: register.begin_format(
        record,
        revision=revision,
        nonce=nonce,
        payload_bytes=4096,
        measurement="m",
        epoch="0e" * 16,
        now_unix=0,
        lifetime_seconds=10,
    )


def test_a_record_comes_back_as_it_was_stored(store: Store, register_: Register) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    changed = store.change("pvc-1", begin("1e" * 32), EVENT)
    assert changed.state is VolumeState.FORMATTING
    store.close()
    again = register_.open()
    assert again.volume("pvc-1") == changed
    assert again.volumes() == [changed]
    stored = again.release("pvc-1", lambda _: EVENT)
    assert stored is not None
    assert stored.wrapped_secret == WRAPPED
    again.close()


def test_the_first_allocation_stays(store: Store) -> None:
    assert store.allocate(ALLOCATED, WRAPPED, EVENT) is None
    assert store.allocate(ALLOCATED, b"another", EVENT) == ALLOCATED
    stored = store.release("pvc-1", lambda _: EVENT)
    assert stored is not None
    assert stored.wrapped_secret == WRAPPED


def test_an_unknown_volume_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="pvc-2"):
        store.volume("pvc-2")
    with pytest.raises(NotFound, match="pvc-2"):
        store.change("pvc-2", register.retire, EVENT)
    assert store.release("pvc-2", lambda _: EVENT) is None


def test_a_refused_change_leaves_no_trace(store: Store) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    with pytest.raises(Refused):
        store.change("pvc-1", register.reset, EVENT)

    def no(_: VolumeRecord) -> Event:
        raise Refused("no")

    with pytest.raises(Refused):
        store.release("pvc-1", no)
    assert store.volume("pvc-1") == ALLOCATED
    assert len(store.audit_entries()) == 1


def test_a_repeated_change_is_noted_once(store: Store) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    first = store.change("pvc-1", begin("1e" * 32), EVENT)
    assert store.change("pvc-1", begin("1e" * 32), EVENT) == first
    assert len(store.audit_entries()) == 2


def test_two_processes_see_one_order_of_changes(store: Store, register_: Register) -> None:
    other = register_.open()
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    other.change("pvc-1", begin("aa" * 32), EVENT)
    with pytest.raises(Refused):
        store.change("pvc-1", register.shred, EVENT)
    assert store.verify_audit() == other.verify_audit()
    other.close()


def test_a_request_waits_for_the_database_until_its_deadline_only(store: Store, register_: Register) -> None:
    with register_.locked():
        holder = threading.Thread(target=_held_up, args=(store,))
        holder.start()
        began = time.monotonic()
        for _ in range(3):
            with deadline.within(0.1), pytest.raises(Unavailable, match=r"busy|locked|timeout"):
                store.note(EVENT)
        with pytest.raises(Unavailable):
            store.probe()
        assert time.monotonic() - began < BUSY_SECONDS
    holder.join()
    store.probe()
    store.note(EVENT)


def _held_up(store: Store) -> None:
    """A thread that waits for the database with no deadline of its own, and holds the store meanwhile."""
    store.note(EVENT)


def test_each_new_register_has_an_epoch_of_its_own(tmp_path: Path, postgres: Server) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    epochs = set()
    for made in (OneFile(tmp_path / "a"), OneFile(tmp_path / "b"), OnServer(postgres), OnServer(postgres)):
        for _ in range(2):
            with closing(made.open()) as store:
                epochs.add(store.epoch())
    assert len(epochs) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", epoch) for epoch in epochs)


KILLED = """
import os, signal, sys
from pathlib import Path
from csi.broker import rules as register
from csi.broker.audit import Event
from csi.broker.postgres import Postgres
from csi.broker.sqlite import Sqlite
from csi.broker.store import Store
from csi.core.sealed import Profile
from csi.core.secret import Secret
from tests.fakes.postgres import Server
from tests.fakes.registers import SEALS

argument = sys.argv[1]
store = Store({database}, SEALS)
event = Event(actor="test", action="tested", subject="pvc-1")
store.allocate(register.allocate("pvc-1", Profile.XTS), b"wrapped", event)
print("answered", flush=True)

def killed_inside(record):
    store.here().execute("UPDATE volumes SET record = 'half'")
    os.kill(os.getpid(), signal.SIGKILL)

store.change("pvc-1", killed_inside, event)
"""


def test_killed_inside_a_change_nothing_answered_is_lost_and_nothing_half_done_stays(register_: Register) -> None:
    database, argument = register_.words()
    argv = [sys.executable, "-c", KILLED.format(database=database), argument]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-9, "answered\n"), done.stderr
    with closing(register_.open()) as store:
        assert store.volume("pvc-1") == ALLOCATED
        assert store.verify_audit()[0] == 1


def log_of(store: Store, entries: int = 4) -> str:
    for number in range(entries):
        store.note(Event(actor="a", action="b", subject=str(number)))
    return store.verify_audit()[1]


def test_the_audit_log_is_a_chain(store: Store) -> None:
    assert store.verify_audit() == (0, GENESIS)
    head = log_of(store)
    entries = store.audit_entries()
    assert [entry.seq for entry in entries] == [1, 2, 3, 4]
    assert [entry.previous for entry in entries] == [GENESIS, *(entry.digest for entry in entries[:-1])]
    assert (entries[-1].digest, entries[0].time_unix) == (head, 1000)
    assert store.verify_audit(entries[1].digest) == (4, head)


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'x' WHERE seq = 2", "DELETE FROM audit WHERE seq = 4"])
def test_the_audit_log_is_append_only(store: Store, register_: Register, statement: str) -> None:
    log_of(store)
    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.RaiseException), match="append-only"):
        register_.other_hands(statement)


TAMPERING = {
    "altered": "UPDATE audit SET actor = 'x' WHERE seq = 2",
    "an earlier time": "UPDATE audit SET time_unix = 1 WHERE seq = 1",
    "removed inside": "DELETE FROM audit WHERE seq = 2",
    "removed first": "DELETE FROM audit WHERE seq = 1",
    "renumbered": "UPDATE audit SET seq = 9 WHERE seq = 4",
    "another revision": "UPDATE audit SET revision = 1 WHERE seq = 2",
    "no signature": "UPDATE audit SET signature = x'' WHERE seq = 2",
    "another type": "UPDATE audit SET detail = x'00' WHERE seq = 2",
    "replaced digest": "UPDATE audit SET digest = 'x' WHERE seq = 3",
    "added": "INSERT INTO audit VALUES (5, 0, 'a', 'b', 'c', '', NULL, 'x', 'y', x'00')",
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_with_the_audit_log_is_detected(store: Store, register_: Register, how: str) -> None:
    log_of(store)
    register_.drop_triggers()
    assert register_.other_hands(TAMPERING[how]) == 1
    with pytest.raises(Tampered, match="audit entry"):
        store.verify_audit()


def test_a_cut_off_end_is_detected_with_a_noted_digest(store: Store, register_: Register) -> None:
    head = log_of(store)
    register_.drop_triggers()
    register_.other_hands("DELETE FROM audit WHERE seq = 4")
    assert store.verify_audit()[0] == 3
    with pytest.raises(Tampered, match="cut off"):
        store.verify_audit(head)


def test_a_log_that_was_written_anew_is_detected(store: Store, register_: Register) -> None:
    """A whole chain, right in every digest, by somebody without the broker's key."""
    log_of(store)
    other = replace(SEALS, signer=Ed25519PrivateKey.generate())
    register_.drop_triggers()
    register_.other_hands("DELETE FROM audit")
    with store._database.changing("test") as rows:
        for number in range(4):
            audit.append(rows, Event(actor="a", action="c", subject=str(number)), 1000, other)
    with store._database.reading() as rows:
        assert audit.verify(rows, other)[0] == 4
    with pytest.raises(Tampered, match=r"entry 1: it is not signed by this broker's audit\.key"):
        store.verify_audit()


ROW_TAMPERING = {
    "generation set back": "UPDATE volumes SET record = replace(record, '\"announced\":2', '\"announced\":1')",
    "revision set back": "UPDATE volumes SET revision = 1",
    "another secret": "UPDATE volumes SET wrapped_secret = x'00'",
    "another owner": "UPDATE volumes SET owner = 'somebody'",
    "another id": "UPDATE volumes SET volume_id = 'pvc-2'",
    "no mac": "UPDATE volumes SET mac = x''",
    "a text for a mac": "UPDATE volumes SET mac = ''",
    "removed": "DELETE FROM volumes",
    "the whole row of before, MAC and all": (
        "UPDATE volumes SET (revision, record, mac) = (SELECT revision, record, mac FROM older)"
    ),
}


@pytest.mark.parametrize("how", ROW_TAMPERING)
def test_a_row_that_other_hands_changed_is_refused_as_tampered(store: Store, register_: Register, how: str) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    store.change("pvc-1", lambda record: replace(record, revision=2, announced=1), EVENT)
    register_.other_hands("CREATE TABLE older AS SELECT * FROM volumes")
    store.change("pvc-1", lambda record: replace(record, revision=3, announced=2), EVENT)
    assert store.volume("pvc-1").announced == 2
    assert register_.other_hands(ROW_TAMPERING[how]) == 1
    for ask in (
        lambda: store.volume("pvc-1"),
        store.volumes,
        lambda: store.release("pvc-1", lambda _: EVENT),
        lambda: store.change("pvc-1", register.retire, EVENT),
        lambda: store.allocate(ALLOCATED, WRAPPED, EVENT),
    ):
        with pytest.raises(Tampered, match=r"volume pvc-\d was changed by something else than the broker"):
            ask()


def test_stored_records_are_readable_json(store: Store) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    with store._database.reading() as rows:
        text = rows.execute("SELECT record FROM volumes").fetchone()[0]
    assert json.loads(text)["state"] == "allocated"


def test_a_broker_notices_an_older_state_in_the_place_of_the_register(store: Store, register_: Register) -> None:
    """Also when others have added to the log since, so that it is longer than it was."""
    log_of(store)
    with closing(register_.open()) as other:
        register_.drop_triggers()
        register_.other_hands("DELETE FROM audit WHERE seq > 2")
        for _ in range(3):
            other.note(EVENT)
        for ask in (lambda: store.note(EVENT), lambda: store.allocate(ALLOCATED, WRAPPED, EVENT)):
            with pytest.raises(Tampered, match="the register went back: its audit log does not hold entry 4"):
                ask()
        other.note(EVENT)
    with pytest.raises(NotFound):
        store.volume("pvc-1")


def test_what_is_refused_is_noted_whatever_it_is_called(store: Store) -> None:
    store.note(Event(actor="a", action="denied", subject="pvc\0-1", detail="\0"))
    assert store.audit_entries()[0].event.subject == "pvc\N{REPLACEMENT CHARACTER}-1"
    assert store.verify_audit()[0] == 1


class Notes:
    """What a ration lets into the log, and a clock that a test moves."""

    def __init__(self, limit: int) -> None:
        self.now = 1_000_000.0
        self.details: list[str] = []
        self.ration = Ration(lambda event: self.details.append(event.detail), clock=lambda: self.now, limit=limit)

    def refuse(self, *details: str) -> None:
        for detail in details:
            self.ration.note(Event(actor="a", action="refused", subject="pvc-1", detail=detail))


def test_refusals_beyond_the_ration_are_counted_and_told_later() -> None:
    notes = Notes(limit=2)
    notes.refuse("1", "2", "3", "4", "5")
    assert notes.details == ["1", "2"]
    notes.now += 60
    notes.refuse("6")
    assert notes.details == ["1", "2", "3 more in that minute; the last: 5", "6"]
    notes.now += 600
    notes.refuse("7")
    assert notes.details[4:] == ["7"], "nothing was left out"


def test_what_was_left_out_is_told_at_the_end_and_once() -> None:
    notes = Notes(limit=1)
    notes.refuse("1", "2")
    notes.ration.flush()
    notes.ration.flush()
    assert notes.details == ["1", "1 more in that minute; the last: 2"]


def test_a_clock_that_goes_back_does_not_silence_the_log() -> None:
    notes = Notes(limit=1)
    notes.refuse("1")
    notes.now -= 7200
    notes.refuse("2")
    assert notes.details == ["1", "2"]


def test_a_flood_writes_little() -> None:
    notes = Notes(limit=1)
    for _ in range(10):
        notes.refuse(*["x" * 100_000] * 1000)
        notes.now += 30
    assert len(notes.details) <= 10
    assert max(map(len, notes.details)) < 1100
