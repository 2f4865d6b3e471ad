"""The store loses nothing that it has answered, destroys what it says it destroyed, and its audit log shows tampering."""

import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from csi.broker import audit, deadline
from csi.broker import rules as register
from csi.broker.audit import GENESIS, Event, Ration
from csi.broker.database import BUSY_SECONDS
from csi.broker.seals import Seals
from csi.broker.sqlite import Sqlite
from csi.broker.sqlite_schema import LADDER, connect, empty_database
from csi.broker.store import Store
from csi.broker.vault import Vault
from csi.core.errors import NotFound, Refused, Tampered, Unavailable
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.kbs.register import VolumeRecord, VolumeState

SEALS = Seals(vault=Vault(Secret(bytes(32))), signer=Ed25519PrivateKey.from_private_bytes(bytes(32)))
EVENT = Event(actor="test", action="tested", subject="pvc-1")
ALLOCATED = register.allocate("pvc-1", Profile.XTS)
WRAPPED = b"wrapped-secret-bytes-that-are-easy-to-find-again"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "broker.sqlite").write_bytes(empty_database())
    return Store(Sqlite(tmp_path / "broker.sqlite"), SEALS, clock=lambda: 1000.9)


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


def test_a_record_comes_back_as_it_was_stored(store: Store, tmp_path: Path) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    changed = store.change("pvc-1", begin("1e" * 32), EVENT)
    assert changed.state is VolumeState.FORMATTING
    store.close()
    again = Store(Sqlite(tmp_path / "broker.sqlite"), SEALS)
    assert again.volume("pvc-1") == changed
    assert again.volumes() == [changed]
    stored = again.release("pvc-1", lambda _: EVENT)
    assert stored is not None
    assert stored.wrapped_secret == WRAPPED


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


def test_a_shredded_secret_is_nowhere_in_the_files(store: Store, tmp_path: Path) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    assert any(WRAPPED in path.read_bytes() for path in tmp_path.iterdir())
    store.change("pvc-1", register.shred, EVENT, destroy_secret=True)
    assert not any(WRAPPED in path.read_bytes() for path in tmp_path.iterdir())
    assert store.volume("pvc-1").state is VolumeState.SHREDDED


def test_a_shredding_that_a_reader_delays_is_completed_by_repeating_it(store: Store, tmp_path: Path) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    reader = sqlite3.connect(tmp_path / "broker.sqlite")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM volumes").fetchall()
    with deadline.within(0.05), pytest.raises(Unavailable, match="repeat it"):
        store.change("pvc-1", register.shred, EVENT, destroy_secret=True)
    reader.close()
    store.change("pvc-1", register.shred, EVENT, destroy_secret=True)
    assert not any(WRAPPED in path.read_bytes() for path in tmp_path.iterdir())


def test_a_destroyed_resource_is_nowhere_in_the_files(store: Store, tmp_path: Path) -> None:
    store.put_resource("a/b/c", WRAPPED, EVENT)
    assert store.resource("a/b/c") == WRAPPED
    store.delete_resource("a/b/c", EVENT)
    assert not any(WRAPPED in path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(NotFound):
        store.resource("a/b/c")
    with pytest.raises(NotFound):
        store.delete_resource("a/b/c", EVENT)


def test_two_processes_see_one_order_of_changes(store: Store, tmp_path: Path) -> None:
    other = Store(Sqlite(tmp_path / "broker.sqlite"), SEALS)
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    other.change("pvc-1", begin("aa" * 32), EVENT)
    with pytest.raises(Refused):
        store.change("pvc-1", register.shred, EVENT)
    assert store.verify_audit() == other.verify_audit()


def test_a_request_waits_for_the_database_until_its_deadline_only(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "broker.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        holder = threading.Thread(target=_held_up, args=(store,))
        holder.start()
        began = time.monotonic()
        for _ in range(3):
            with deadline.within(0.1), pytest.raises(Unavailable, match=r"busy|locked"):
                store.note(EVENT)
        with pytest.raises(Unavailable):
            store.probe()
        assert time.monotonic() - began < BUSY_SECONDS
        other.execute("ROLLBACK")
        holder.join()
    store.probe()
    store.note(EVENT)


def _held_up(store: Store) -> None:
    """A thread that waits for the database with no deadline of its own, and holds the store meanwhile."""
    store.note(EVENT)


def test_a_database_of_a_newer_program_is_refused(store: Store, tmp_path: Path) -> None:
    store._database._db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(Refused, match="newer version"):
        Store(Sqlite(tmp_path / "broker.sqlite"), SEALS)


def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not a database" * 100)
    with pytest.raises(Refused, match=r"not a database.*newest backup"):
        Store(Sqlite(tmp_path / "x"), SEALS)


def database(path: Path, *statements: str) -> bytes:
    with closing(sqlite3.connect(path)) as made:
        for statement in statements:
            made.execute(statement)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["CREATE TABLE other (x)"], "schema version is 0"),
        (["PRAGMA user_version = 1"], "lacks volumes, headers, resources, key_check, epoch, audit, audit_of_volumes"),
        (["CREATE TABLE volumes (x)", "PRAGMA user_version = 1"], "lacks headers, resources"),
    ],
)
def test_a_database_that_init_did_not_write_is_refused_and_left_as_it_is(
    tmp_path: Path, statements: list[str], found: str
) -> None:
    before = database(tmp_path / "x", *statements)
    with pytest.raises(Refused, match=f"{found}.*newest backup"):
        Store(Sqlite(tmp_path / "x"), SEALS)
    assert (tmp_path / "x").read_bytes() == before


@pytest.mark.parametrize("part", ["TABLE key_check", "TRIGGER audit_is_not_changed", "TABLE audit"])
def test_a_database_that_lacks_a_part_is_refused(store: Store, tmp_path: Path, part: str) -> None:
    store._database._db.execute(f"DROP {part}")
    store.close()
    with pytest.raises(Refused, match=f"lacks .*{part.split()[1]}"):
        Store(Sqlite(tmp_path / "broker.sqlite"), SEALS)


def test_a_newer_program_brings_an_older_database_up_the_ladder(store: Store, tmp_path: Path) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    epoch = store.epoch()
    store.close()
    path = tmp_path / "broker.sqlite"
    newer = (*LADDER, "CREATE TABLE more (x); INSERT INTO more SELECT volume_id FROM volumes;")
    for _ in range(2):
        with closing(connect(path, newer)) as db:
            assert db.execute("SELECT x FROM more").fetchall() == [("pvc-1",)]
            assert db.execute("SELECT id FROM epoch").fetchone() == (epoch,)
    with pytest.raises(Refused, match=r"newer version of this program \(schema 2\)"):
        Store(Sqlite(path), SEALS)


def test_a_rung_that_breaks_leaves_the_database_as_it_was(store: Store, tmp_path: Path) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    store.close()
    path = tmp_path / "broker.sqlite"
    with pytest.raises(Refused, match="no such table"):
        connect(path, (*LADDER, "CREATE TABLE more (x); DROP TABLE volumes; INSERT INTO nowhere VALUES (1);"))
    assert Store(Sqlite(path), SEALS).volume("pvc-1") == ALLOCATED


def test_each_new_register_has_an_epoch_of_its_own(tmp_path: Path) -> None:
    epochs = set()
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(empty_database())
        epochs.add(Store(Sqlite(tmp_path / name), SEALS).epoch())
        assert Store(Sqlite(tmp_path / name), SEALS).epoch() in epochs
    assert len(epochs) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", epoch) for epoch in epochs)


@pytest.mark.parametrize("kept", [0, 1, 50, 100, 512, 4096, 5000, -4096])
def test_a_truncated_database_is_refused(store: Store, tmp_path: Path, kept: int) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    store.close()
    path = tmp_path / "broker.sqlite"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(Refused, match="newest backup"):
        Store(Sqlite(path), SEALS)


@pytest.mark.parametrize(("content", "found"), [(b"", "file is empty"), (b"noise" * 1000, "file is not a database")])
def test_a_destroyed_database_does_not_lose_its_write_ahead_log(
    store: Store, tmp_path: Path, content: bytes, found: str
) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    log = (tmp_path / "broker.sqlite-wal").read_bytes()
    (tmp_path / "x").write_bytes(content)
    (tmp_path / "x-wal").write_bytes(log)
    with pytest.raises(Refused, match=rf"{found}.*newest backup"):
        Store(Sqlite(tmp_path / "x"), SEALS)
    assert (tmp_path / "x-wal").read_bytes() == log


def test_a_lost_database_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Store(Sqlite(tmp_path / "x"), SEALS)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from csi.broker.audit import Event
from csi.broker.database import BUSY_SECONDS
from csi.broker.seals import Seals
from csi.broker.sqlite import Sqlite
from csi.broker.store import Store
from csi.broker.vault import Vault
from csi.core.secret import Secret
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from csi.core.sealed import Profile
from csi.broker import audit, deadline
from csi.broker import rules as register

seals = Seals(vault=Vault(Secret(bytes(32))), signer=Ed25519PrivateKey.from_private_bytes(bytes(32)))
store = Store(Sqlite(Path(sys.argv[1])), seals)
event = Event(actor="test", action="tested", subject="pvc-1")
store.allocate(register.allocate("pvc-1", Profile.XTS), b"wrapped", event)
print("answered", flush=True)

def killed_inside(record):
    changed = register.shred(record)
    store._database._db.execute("UPDATE volumes SET record = 'half'")
    os.kill(os.getpid(), signal.SIGKILL)

store.change("pvc-1", killed_inside, event)
"""


def test_killed_inside_a_change_nothing_answered_is_lost_and_nothing_half_done_stays(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    path.write_bytes(empty_database())
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-9, "answered\n"), done.stderr
    store = Store(Sqlite(path), SEALS)
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
def test_the_audit_log_is_append_only(store: Store, statement: str) -> None:
    log_of(store)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        store._database._db.execute(statement)


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
def test_tampering_with_the_audit_log_is_detected(store: Store, how: str) -> None:
    log_of(store)
    for trigger in ("audit_is_not_changed", "audit_is_not_shortened"):
        store._database._db.execute(f"DROP TRIGGER {trigger}")
    store._database._db.execute(TAMPERING[how])
    with pytest.raises(Tampered, match="audit entry"):
        store.verify_audit()


def test_a_cut_off_end_is_detected_with_a_noted_digest(store: Store) -> None:
    head = log_of(store)
    store._database._db.execute("DROP TRIGGER audit_is_not_shortened")
    store._database._db.execute("DELETE FROM audit WHERE seq = 4")
    assert store.verify_audit()[0] == 3
    with pytest.raises(Tampered, match="cut off"):
        store.verify_audit(head)


def test_a_log_that_was_written_anew_is_detected(store: Store, tmp_path: Path) -> None:
    """A whole chain, right in every digest, by somebody without the broker's key."""
    log_of(store)
    other = replace(SEALS, signer=Ed25519PrivateKey.generate())
    for trigger in ("audit_is_not_changed", "audit_is_not_shortened"):
        store._database._db.execute(f"DROP TRIGGER {trigger}")
    store._database._db.execute("DELETE FROM audit")
    for number in range(4):
        audit.append(store._database._db, Event(actor="a", action="c", subject=str(number)), 1000, other)
    assert audit.verify(store._database._db, other)[0] == 4
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
    "the whole row of before, MAC and all": "INSERT OR REPLACE INTO volumes SELECT * FROM older",
}


@pytest.mark.parametrize("how", ROW_TAMPERING)
def test_a_row_that_other_hands_changed_is_refused_as_tampered(store: Store, how: str) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    store.change("pvc-1", lambda record: replace(record, revision=2, announced=1), EVENT)
    store._database._db.execute("CREATE TABLE older AS SELECT * FROM volumes")
    store.change("pvc-1", lambda record: replace(record, revision=3, announced=2), EVENT)
    assert store.volume("pvc-1").announced == 2
    assert store._database._db.execute(ROW_TAMPERING[how]).rowcount == 1
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
    text = store._database._db.execute("SELECT record FROM volumes").fetchone()[0]
    assert json.loads(text)["state"] == "allocated"


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
