"""What a broker must not forget: volume records, wrapped secrets, resources, the audit log. One SQLite file.

Every change is one transaction, flushed before it is answered, with its audit entry inside. Keys are not here: secrets
come wrapped and leave wrapped. The rules of changes are in `csi.broker.rules`.
"""

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from csi.broker import audit
from csi.broker.audit import Entry, Event
from csi.core.errors import NotFound, Refused, Unavailable
from csi.kbs import strict_json
from csi.kbs.register import VolumeRecord

_SCHEMA_VERSION = 1
_BUSY_SECONDS = 10.0
_SCHEMA = (
    """
CREATE TABLE volumes (
  volume_id TEXT PRIMARY KEY, revision INTEGER NOT NULL, record TEXT NOT NULL, wrapped_secret BLOB) WITHOUT ROWID;
CREATE TABLE resources (path TEXT PRIMARY KEY, wrapped BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE key_check (wrapped BLOB NOT NULL);
"""
    + audit.SCHEMA
)

_PARTS = tuple(re.findall(r"CREATE (?:TABLE|TRIGGER) (\w+)", _SCHEMA))

Change = Callable[[VolumeRecord], VolumeRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVolume:
    """A record with its wrapped secret, None once it was shredded."""

    record: VolumeRecord
    wrapped_secret: bytes | None


class Store:
    """The open database. Safe for several threads, and for several processes (a command beside a running server)."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open a database that `empty_database` began; raises `Refused` for any other file, and leaves that as it is."""
        self._clock = clock
        self._lock = threading.Lock()
        try:
            self._db = _connect(path)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"{path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise _damaged(path, str(error)) from error

    def close(self) -> None:
        """End it cleanly; killing the process instead loses nothing, either."""
        self._db.close()

    def volume(self, volume_id: str) -> VolumeRecord:
        """The record of a volume."""
        with self._lock:
            stored = self._read_volume(volume_id)
        if stored is None:
            raise NotFound(f"volume {volume_id} is not in the register")
        return stored.record

    def volumes(self) -> list[VolumeRecord]:
        """All records, by id."""
        with self._lock:
            rows = self._db.execute("SELECT record FROM volumes ORDER BY volume_id").fetchall()
        return [_decode(row[0]) for row in rows]

    def is_empty(self) -> bool:
        """Whether no secret was ever stored here."""
        with self._lock:
            query = "SELECT EXISTS (SELECT 1 FROM volumes) OR EXISTS (SELECT 1 FROM resources)"
            return not self._db.execute(query).fetchone()[0]

    def key_check(self, wrapped: bytes) -> bytes:
        """The value that was wrapped when the database was first used; `wrapped` itself when that is now."""
        with self._transaction():
            row = self._db.execute("SELECT wrapped FROM key_check").fetchone()
            if row is None:
                self._db.execute("INSERT INTO key_check VALUES (?)", (wrapped,))
            return wrapped if row is None else bytes(row[0])

    def allocate(self, record: VolumeRecord, wrapped_secret: bytes, event: Event) -> VolumeRecord | None:
        """Add a volume unless it is there: of two guests that come first at the same time, both get one secret.

        Answers the record that was there already, None for a new volume.
        """
        with self._transaction():
            stored = self._read_volume(record.volume_id)
            if stored is not None:
                return stored.record
            self._db.execute(
                "INSERT INTO volumes VALUES (?, ?, ?, ?)",
                (record.volume_id, record.revision, _encode(record), wrapped_secret),
            )
            self._note(event)
            return None

    def release(self, volume_id: str, check: Callable[[VolumeRecord], Event]) -> StoredVolume | None:
        """A stored volume whose secret is about to be given out: `check` says no by raising, else what to note.

        One transaction, so that no secret leaves after the log says that it was shredded. None for an unknown volume.
        """
        with self._transaction():
            stored = self._read_volume(volume_id)
            if stored is not None:
                self._note(check(stored.record))
            return stored

    def change(self, volume_id: str, change: Change, event: Event, *, destroy_secret: bool = False) -> VolumeRecord:
        """Replace a record by `change(record)`, atomically; an error of `change` leaves everything as it was.

        A change that answers the same record (a repeated request) stores and notes nothing.
        """
        with self._transaction():
            stored = self._read_volume(volume_id)
            if stored is None:
                raise NotFound(f"volume {volume_id} is not in the register")
            record = change(stored.record)
            if record != stored.record:
                self._db.execute(
                    "UPDATE volumes SET revision = ?, record = ?, wrapped_secret = ? WHERE volume_id = ?",
                    (record.revision, _encode(record), None if destroy_secret else stored.wrapped_secret, volume_id),
                )
                self._note(event)
        if destroy_secret:
            self._forget_old_pages()
        return record

    def resource(self, path: str) -> bytes:
        """A wrapped resource."""
        with self._lock:
            row = self._db.execute("SELECT wrapped FROM resources WHERE path = ?", (path,)).fetchone()
        if row is None:
            raise NotFound(f"resource {path} does not exist")
        return bytes(row[0])

    def put_resource(self, path: str, wrapped: bytes, event: Event) -> None:
        """Store a wrapped resource in place of an older one."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO resources VALUES (?, ?)", (path, wrapped))
            self._note(event)

    def delete_resource(self, path: str, event: Event) -> None:
        """Destroy a resource."""
        with self._transaction():
            if self._db.execute("DELETE FROM resources WHERE path = ?", (path,)).rowcount == 0:
                raise NotFound(f"resource {path} does not exist")
            self._note(event)
        self._forget_old_pages()

    def note(self, event: Event) -> None:
        """Add an entry to the audit log."""
        with self._transaction():
            self._note(event)

    def audit_entries(self) -> list[Entry]:
        """The audit log, oldest entry first."""
        with self._lock:
            return list(audit.read(self._db))

    def verify_audit(self, expected_head: str | None = None) -> tuple[int, str]:
        """See `audit.verify`."""
        with self._lock:
            return audit.verify(self._db, expected_head)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """IMMEDIATE takes the write lock before anything is read, which makes compare-and-set of what is read sound."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._db.execute("COMMIT")
                finally:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise Unavailable(f"the register's database: {error}") from error

    def _forget_old_pages(self) -> None:
        """Empty the write-ahead log, which still holds the pages as they were before a secret was destroyed."""
        with self._lock:
            busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise Unavailable("the secret is destroyed in the database but not yet in its write-ahead log; repeat it")

    def _read_volume(self, volume_id: str) -> StoredVolume | None:
        row = self._db.execute(
            "SELECT record, wrapped_secret FROM volumes WHERE volume_id = ?", (volume_id,)
        ).fetchone()
        return None if row is None else StoredVolume(record=_decode(row[0]), wrapped_secret=row[1])

    def _note(self, event: Event) -> None:
        audit.append(self._db, event, int(self._clock()))


def empty_database() -> bytes:
    """The bytes of a database without content, for `init` alone: anywhere else a file without the tables is a damaged one.

    Written as a whole file, it is never seen half made.
    """
    with closing(sqlite3.connect(":memory:")) as made:
        made.executescript(f"{_SCHEMA}PRAGMA user_version = {_SCHEMA_VERSION};")
        return made.serialize()


def _connect(path: Path) -> sqlite3.Connection:
    # To SQLite a file without bytes is an empty database, and opening it throws away the write-ahead log beside it.
    if path.stat().st_size == 0:
        raise _damaged(path, "the file is empty")
    uri = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _check_schema(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        # Freed pages are overwritten with zeros: a shredded secret must not survive in the file.
        db.execute("PRAGMA secure_delete = ON")
    except BaseException:
        db.close()
        raise
    return db


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    """With an empty register in the place of the real one, guests could format volumes that hold data."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _SCHEMA_VERSION:
        raise Refused(f"{path} was written by a newer version of this program (schema {version})")
    if version < _SCHEMA_VERSION:
        raise _damaged(path, f"its schema version is {version}, not {_SCHEMA_VERSION}")
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if missing := [name for name in _PARTS if name not in found]:
        raise _damaged(path, f"it lacks {', '.join(missing)}")


def _damaged(path: Path, found: str) -> Refused:
    return Refused(
        f"{path} is not what `sealed-local broker init` wrote: {found}. Restore the newest backup; with an empty register "
        "in its place guests could format volumes that hold data"
    )


def _encode(record: VolumeRecord) -> str:
    return strict_json.encode(record).decode()


def _decode(text: str) -> VolumeRecord:
    return strict_json.decode(text, VolumeRecord, "stored record")
