"""What a broker must not forget: volume records, wrapped secrets, resources, the audit log. One SQLite file.

Every change is one transaction, flushed before it is answered, with its audit entry inside. Keys are not here: secrets
come wrapped and leave wrapped. The rules of changes are in `csi.broker.rules`.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from csi.broker import audit, deadline, schema
from csi.broker.audit import Entry, Event
from csi.broker.owner import Owner
from csi.broker.rows import StoredVolume, row_of, stored_of
from csi.broker.seals import Row, Seals, tampered
from csi.core.errors import NotFound, Unavailable
from csi.kbs.register import VolumeRecord

_SELECT = "SELECT volume_id, revision, record, wrapped_secret, owner, mac FROM volumes"
_EPOCH_BYTES = 16
_PROBE_SECONDS = 1.0

Change = Callable[[VolumeRecord], VolumeRecord]


Check = Callable[[StoredVolume], Event]


def _anybody(_: StoredVolume) -> None:
    """No check: an operator may change every volume."""


class Store:
    """The open database. Safe for several threads, and for several processes (a command beside a running server)."""

    def __init__(
        self, path: Path, seals: Seals, *, clock: Callable[[], float] = time.time, place: int | None = None
    ) -> None:
        """Open a database that `init` made; raises `Refused` for any other file, and leaves that as it is.

        `place` is a descriptor of `turns.together`, closed with the store.
        """
        self._place = place
        self._path = path
        self._seals = seals
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
            return self._present(volume_id)

    def volume(self, volume_id: str) -> VolumeRecord:
        """The record of a volume."""
        return self.stored(volume_id).record

    def volumes(self) -> list[VolumeRecord]:
        """All records, by id."""
        return [stored.record for stored in self.all_stored()]

    def all_stored(self) -> list[StoredVolume]:
        """All volumes, by id."""
        with self._reading():
            self._db.execute("BEGIN")  # Rows and log of one moment.
            try:
                rows = self._db.execute(f"{_SELECT} ORDER BY volume_id").fetchall()
                noted = audit.newest_revisions(self._db)
            finally:
                self._db.execute("ROLLBACK")
        found = [self._checked(row, noted) for row in rows]
        if missing := sorted(noted.keys() - {stored.record.volume_id for stored in found}):
            raise tampered(missing[0], "it was removed")
        return found

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

    def key_check(self, wrapped: bytes) -> bytes:
        """The value that was wrapped when the database was first used; `wrapped` itself when that is now."""
        with self._transaction():
            row = self._db.execute("SELECT wrapped FROM key_check").fetchone()
            if row is None:
                self._db.execute("INSERT INTO key_check VALUES (?)", (wrapped,))
        return wrapped if row is None else self._bytes(row[0])

    def allocate(
        self, record: VolumeRecord, wrapped_secret: bytes, event: Event, *, owner: Owner | None = None
    ) -> VolumeRecord | None:
        """Add a volume unless it is there: of two guests that come first at the same time, both get one secret.

        Answers the record that was there already, None for a new volume.
        """
        with self._transaction():
            stored = self._read_volume(record.volume_id)
            if stored is not None:
                return stored.record
            self._write(StoredVolume(record=record, wrapped_secret=wrapped_secret, owner=owner), event)
            return None

    def release(self, volume_id: str, check: Check, claim: tuple[Owner, Event] | None = None) -> StoredVolume | None:
        """A stored volume whose secret is about to be given out: `check` says no by raising, else what to note.

        A volume without an owner becomes the one of `claim`, with its entry. One transaction, so that no secret leaves
        after the log says that it was shredded. None for an unknown volume.
        """
        with self._transaction():
            stored = self._read_volume(volume_id)
            if stored is None:
                return None
            released = check(stored)
            if stored.owner is None and claim is not None:
                stored = replace(stored, owner=claim[0])
                self._write(stored, claim[1])
            self._note(released)
            return stored

    def change(
        self,
        volume_id: str,
        change: Change,
        event: Event,
        *,
        destroy_secret: bool = False,
        wrapped_header: bytes | None = None,
        check: Callable[[StoredVolume], None] = _anybody,
    ) -> VolumeRecord:
        """Replace a record by `change(record)`, atomically; an error of `check` or `change` leaves everything as it was.

        A change that returns the same record (a repeated request) stores and notes nothing. `wrapped_header` is stored with
        the new record; the header goes when the secret is destroyed.
        """
        with self._transaction():
            stored = self._present(volume_id)
            check(stored)
            record = change(stored.record)
            if record != stored.record:
                kept = None if destroy_secret else stored.wrapped_secret
                self._write(replace(stored, record=record, wrapped_secret=kept), event)
                if destroy_secret or wrapped_header is not None:
                    self._put_header(volume_id, None if destroy_secret else wrapped_header)
        if destroy_secret:
            self._forget_old_pages()
        return record

    def hand_over(self, volume_id: str, owner: Owner, change: Change, event: Event) -> None:
        """Give a volume to another owner; the entry says whose it was."""
        with self._transaction():
            stored = self._present(volume_id)
            detail = f"from={stored.owner or 'nobody'} to={owner}"
            self._write(replace(stored, owner=owner, record=change(stored.record)), replace(event, detail=detail))

    def adopt(self, stored: StoredVolume, event: Event, wrapped_header: bytes | None) -> None:
        """Put a volume as it is in the place of what is here, if anything, its header too: a restore takes it over."""
        with self._transaction():
            self._write(stored, event)
            self._put_header(stored.record.volume_id, wrapped_header)

    def header(self, volume_id: str) -> bytes | None:
        """The wrapped header of a volume; None where none is kept."""
        with self._reading():
            row = self._db.execute("SELECT wrapped FROM headers WHERE volume_id = ?", (volume_id,)).fetchone()
        return None if row is None else self._bytes(row[0])

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
        return self._bytes(row[0])

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
            return audit.verify(self._db, self._seals, expected_head)

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

    def _bytes(self, value: object) -> bytes:
        """A column of SQLite holds whatever was written into it."""
        if not isinstance(value, bytes):
            raise schema.damaged(self._path, "a wrapped secret or header is not bytes")
        return value

    def _present(self, volume_id: str) -> StoredVolume:
        stored = self._read_volume(volume_id)
        if stored is None:
            raise NotFound(f"volume {volume_id} is not in the register")
        return stored

    def _read_volume(self, volume_id: str) -> StoredVolume | None:
        row = self._db.execute(f"{_SELECT} WHERE volume_id = ?", (volume_id,)).fetchone()
        noted = audit.newest_revisions(self._db, volume_id)
        if row is None and noted:
            raise tampered(volume_id, "it was removed")
        return None if row is None else self._checked(row, noted)

    def _checked(self, columns: Sequence[object], noted: Mapping[str, object]) -> StoredVolume:
        """A row that this broker wrote last; raises `Tampered` for any other. The MAC tells who wrote it, the log when."""
        *members, mac = columns
        try:
            row = msgspec.convert(dict(zip(Row.__slots__, members, strict=True)), Row, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise tampered(str(columns[0]), str(error)) from error
        self._seals.check_row(row, mac)
        if noted.get(row.volume_id) != row.revision:
            raise tampered(
                row.volume_id,
                f"it is of revision {row.revision}, the audit log's newest is {noted.get(row.volume_id)}",
            )
        return stored_of(row)

    def _write(self, stored: StoredVolume, event: Event) -> None:
        """The row and its entry in the log, which names the revision."""
        row, record = row_of(stored), stored.record
        members = (row.volume_id, row.revision, row.record, row.wrapped_secret, row.owner, self._seals.of_row(row))
        self._db.execute("INSERT OR REPLACE INTO volumes VALUES (?, ?, ?, ?, ?, ?)", members)
        self._note(replace(event, subject=record.volume_id), record.revision)

    def _put_header(self, volume_id: str, wrapped: bytes | None) -> None:
        if wrapped is None:
            self._db.execute("DELETE FROM headers WHERE volume_id = ?", (volume_id,))
        else:
            self._db.execute("INSERT OR REPLACE INTO headers VALUES (?, ?)", (volume_id, wrapped))

    def _note(self, event: Event, revision: int | None = None) -> None:
        audit.append(self._db, event, int(self._clock()), self._seals, revision)
