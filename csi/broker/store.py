"""What a broker must not forget: volume records, wrapped secrets, resources, the audit log. One SQLite file.

Every change is one transaction, flushed before it is answered, with its audit entry inside. Keys are not here: secrets
come wrapped and leave wrapped. The rules of changes are in `csi.broker.rules`.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from csi.broker import audit, deadline, schema
from csi.broker.audit import Entry, Event
from csi.core.errors import InvalidInput, NotFound, Tampered, Unavailable
from csi.kbs import strict_json
from csi.kbs.register import VolumeRecord

_EPOCH_BYTES = 16
_PROBE_SECONDS = 1.0

Change = Callable[[VolumeRecord], VolumeRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVolume:
    """A record with its wrapped secret, None once it was shredded."""

    record: VolumeRecord
    wrapped_secret: bytes | None


class Store:
    """The open database. Safe for several threads, and for several processes (a command beside a running server)."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, place: int | None = None) -> None:
        """Open a database that `init` made; raises `Refused` for any other file, and leaves that as it is.

        `place` is a descriptor of `turns.together`, closed with the store.
        """
        self._place = place
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._db = schema.connect(path)

    def close(self) -> None:
        """End it cleanly; killing the process instead loses nothing, either."""
        self._db.close()
        if self._place is not None:
            os.close(self._place)
            self._place = None

    def stored(self, volume_id: str) -> StoredVolume:
        """The record of a volume with its wrapped secret."""
        with self._reading():
            stored = self._read_volume(volume_id)
        if stored is None:
            raise NotFound(f"volume {volume_id} is not in the register")
        return stored

    def volume(self, volume_id: str) -> VolumeRecord:
        """The record of a volume."""
        return self.stored(volume_id).record

    def volumes(self) -> list[VolumeRecord]:
        """All records, by id."""
        with self._reading():
            rows = self._db.execute("SELECT volume_id, record FROM volumes ORDER BY volume_id").fetchall()
        return [_decode(*row) for row in rows]

    def epoch(self) -> str:
        """The random id of this life of the register, in hex; a restored register has another one."""
        with self._reading():
            row = self._db.execute("SELECT id FROM epoch").fetchone()
        if row is None or not isinstance(row[0], str):
            raise schema.damaged(self._path, "it has no epoch")
        return row[0]

    def check_integrity(self) -> None:
        """Read the whole file; raises `Refused` when it is damaged anywhere."""
        with self._reading():
            schema.check_integrity(self._db, self._path)

    def probe(self) -> None:
        """See whether a change could be made now, beside everything that waits here; raises `Unavailable` or `Refused`."""
        try:
            with closing(schema.plainly(self._path, _PROBE_SECONDS)) as db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("SELECT id FROM epoch").fetchone()
                db.execute("ROLLBACK")
        except schema.ERRORS as error:
            raise schema.translated(error, self._path) from error

    def is_empty(self) -> bool:
        """Whether no secret was ever stored here."""
        with self._reading():
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

    def adopt(self, stored: StoredVolume, event: Event) -> None:
        """Put a volume as it is in the place of what is here, if anything: a restore takes it over."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO volumes VALUES (?, ?, ?, ?)",
                (stored.record.volume_id, stored.record.revision, _encode(stored.record), stored.wrapped_secret),
            )
            self._note(event)

    def renew_epoch(self, event: Event) -> str:
        """Begin a new life of the register; returns its id."""
        epoch = os.urandom(_EPOCH_BYTES).hex()
        with self._transaction():
            self._db.execute("UPDATE epoch SET id = ?", (epoch,))
            self._note(event)
        return epoch

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of everything, whoever is writing meanwhile."""
        with self._reading(), closing(sqlite3.connect(path)) as copy:
            self._db.backup(copy)

    def resource(self, path: str) -> bytes:
        """A wrapped resource."""
        with self._reading():
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
        with self._reading():
            return list(audit.read(self._db))

    def verify_audit(self, expected_head: str | None = None) -> tuple[int, str]:
        """See `audit.verify`."""
        with self._reading():
            return audit.verify(self._db, expected_head)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """IMMEDIATE takes the write lock before anything is read, which makes compare-and-set of what is read sound."""
        with self._reading():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One thread at a time, by the request's deadline; what SQLite raises becomes an error of ours."""
        if not self._lock.acquire(timeout=deadline.remaining(schema.BUSY_SECONDS)):
            raise Unavailable("the register's database is busy; try again")
        try:
            milliseconds = int(1000 * deadline.remaining(schema.BUSY_SECONDS))
            self._db.execute(f"PRAGMA busy_timeout = {milliseconds}")
            yield
        except schema.ERRORS as error:
            raise schema.translated(error, self._path) from error
        finally:
            self._lock.release()

    def _forget_old_pages(self) -> None:
        """Empty the write-ahead log, which still holds the pages as they were before a secret was destroyed."""
        with self._reading():
            busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise Unavailable("the secret is destroyed in the database but not yet in its write-ahead log; repeat it")

    def _read_volume(self, volume_id: str) -> StoredVolume | None:
        row = self._db.execute(
            "SELECT record, wrapped_secret FROM volumes WHERE volume_id = ?", (volume_id,)
        ).fetchone()
        return None if row is None else StoredVolume(record=_decode(volume_id, row[0]), wrapped_secret=row[1])

    def _note(self, event: Event) -> None:
        audit.append(self._db, event, int(self._clock()))


def _encode(record: VolumeRecord) -> str:
    return strict_json.encode(record).decode()


def _decode(volume_id: object, text: object) -> VolumeRecord:
    """A column of SQLite holds whatever was written into it, so its type is looked at, too."""
    if not isinstance(text, str):
        raise Tampered(f"the stored record of volume {volume_id} is not text")
    try:
        return strict_json.decode(text, VolumeRecord, "record")
    except InvalidInput as error:
        raise Tampered(f"the stored record of volume {volume_id} can't be read: {error}") from error
