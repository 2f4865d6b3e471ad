"""What a broker must not forget: volume records, wrapped secrets, resources, the audit log, in a database.

Every change is one transaction, flushed before it is answered, with its audit entry inside. Keys are not here: secrets
come wrapped and leave wrapped. The rules of changes are in `csi.broker.rules`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from csi.broker import audit
from csi.broker.audit import Entry, Event, Place
from csi.broker.database import Database, Rows
from csi.broker.owner import Owner
from csi.broker.rows import StoredVolume, row_of, stored_of
from csi.broker.seals import Row, Seals, tampered
from csi.broker.vault import Vault
from csi.core.errors import NotFound, Unavailable
from csi.kbs.register import VolumeRecord

_SELECT = "SELECT volume_id, revision, record, wrapped_secret, owner, mac FROM volumes"
_PUT_VOLUME = (
    "INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (volume_id) DO UPDATE SET revision = excluded.revision, "
    "record = excluded.record, wrapped_secret = excluded.wrapped_secret, owner = excluded.owner, mac = excluded.mac"
)
_PUT_HEADER = "INSERT INTO headers VALUES (?, ?) ON CONFLICT (volume_id) DO UPDATE SET wrapped = excluded.wrapped"
_PUT_RESOURCE = "INSERT INTO resources VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET wrapped = excluded.wrapped"
_EPOCH_BYTES = 16

Change = Callable[[VolumeRecord], VolumeRecord]
Check = Callable[[StoredVolume], Event]


def _anybody(_: StoredVolume) -> None:
    """No check: an operator may change every volume."""


@dataclass(slots=True)
class _Change:
    """A transaction, and the last entry that it added to the log."""

    rows: Rows
    noted: Place | None = None


class Store:
    """The open register. Safe for several threads, and for several processes (a command beside a running server)."""

    def __init__(self, database: Database, seals: Seals, *, clock: Callable[[], float] = time.time) -> None:
        """The database is closed with the store."""
        self._database = database
        self._seals = seals
        self._clock = clock
        self._here = threading.local()
        self._newest_lock = threading.Lock()
        self._newest: Place | None = None
        self._key_check: bytes | None = None

    def close(self) -> None:
        """End it cleanly; killing the process instead loses nothing, either."""
        self._database.close()

    @property
    def vault(self) -> Vault:
        """The vault that rows are sealed by: a KMS is asked for its key once, when the store is opened."""
        return self._seals.vault

    def here(self) -> Rows:
        """The transaction that this thread is in: what a rule reads and writes there is stored with its change, or not."""
        rows: Rows = self._here.rows
        return rows

    def stored(self, volume_id: str) -> StoredVolume:
        """The record of a volume with its wrapped secret."""
        with self._reading() as rows:
            return self._present(rows, volume_id)

    def volume(self, volume_id: str) -> VolumeRecord:
        """The record of a volume."""
        return self.stored(volume_id).record

    def volumes(self) -> list[VolumeRecord]:
        """All records, by id."""
        return [stored.record for stored in self.all_stored()]

    def all_stored(self) -> list[StoredVolume]:
        """All volumes, by id."""
        with self._reading() as rows:
            columns = rows.execute(f"{_SELECT} ORDER BY volume_id").fetchall()
            noted = audit.newest_revisions(rows)
        found = [self._checked(row, noted) for row in columns]
        if missing := sorted(noted.keys() - {stored.record.volume_id for stored in found}):
            raise tampered(missing[0], "it was removed")
        return found

    def epoch(self) -> str:
        """The random id of this life of the register, in hex; a restored register has another one."""
        with self._reading() as rows:
            row = rows.execute("SELECT id FROM epoch").fetchone()
        if row is None or not isinstance(row[0], str):
            raise self._database.damaged("it has no epoch")
        return row[0]

    def check_integrity(self) -> None:
        """Read everything; raises `Refused` when it is damaged anywhere."""
        self._database.check_integrity()

    def probe(self) -> None:
        """See whether a change could be made now, beside everything that waits here; raises `Unavailable` or `Refused`."""
        self._database.probe(self._check_key)

    def key_check(self, wrapped: bytes) -> bytes:
        """The value that was wrapped when the database was first used; `wrapped` itself when that is now."""
        with self._changing("key check") as now:
            row = now.rows.execute("SELECT wrapped FROM key_check").fetchone()
            if row is None:
                now.rows.execute("INSERT INTO key_check VALUES (?)", (wrapped,))
        self._key_check = wrapped if row is None else self._bytes(row[0])
        return self._key_check

    def allocate(
        self, record: VolumeRecord, wrapped_secret: bytes, event: Event, *, owner: Owner | None = None
    ) -> VolumeRecord | None:
        """Add a volume unless it is there: of two guests that come first at the same time, both get one secret.

        Answers the record that was there already, None for a new volume.
        """
        with self._changing(record.volume_id) as now:
            stored = self._read_volume(now.rows, record.volume_id)
            if stored is not None:
                return stored.record
            self._write(now, StoredVolume(record=record, wrapped_secret=wrapped_secret, owner=owner), event)
            return None

    def release(self, volume_id: str, check: Check, claim: tuple[Owner, Event] | None = None) -> StoredVolume | None:
        """A stored volume whose secret is about to be given out: `check` says no by raising, else what to note.

        A volume without an owner becomes the one of `claim`, with its entry. One transaction, so that no secret leaves
        after the log says that it was shredded. None for an unknown volume.
        """
        with self._changing(volume_id) as now:
            stored = self._read_volume(now.rows, volume_id)
            if stored is None:
                return None
            released = check(stored)
            if stored.owner is None and claim is not None:
                stored = replace(stored, owner=claim[0])
                self._write(now, stored, claim[1])
            self._note(now, released)
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
        with self._changing(volume_id) as now:
            stored = self._present(now.rows, volume_id)
            check(stored)
            record = change(stored.record)
            if record != stored.record:
                kept = None if destroy_secret else stored.wrapped_secret
                self._write(now, replace(stored, record=record, wrapped_secret=kept), event)
                if destroy_secret or wrapped_header is not None:
                    self._put_header(now, volume_id, None if destroy_secret else wrapped_header)
        if destroy_secret:
            self._database.forget()
        return record

    def hand_over(self, volume_id: str, owner: Owner, change: Change, event: Event) -> None:
        """Give a volume to another owner; the entry says whose it was."""
        with self._changing(volume_id) as now:
            stored = self._present(now.rows, volume_id)
            detail = f"from={stored.owner or 'nobody'} to={owner}"
            self._write(now, replace(stored, owner=owner, record=change(stored.record)), replace(event, detail=detail))

    def adopt(self, stored: StoredVolume, event: Event, wrapped_header: bytes | None) -> None:
        """Put a volume as it is in the place of what is here, if anything, its header too: a restore takes it over."""
        with self._changing(stored.record.volume_id) as now:
            self._write(now, stored, event)
            self._put_header(now, stored.record.volume_id, wrapped_header)

    def header(self, volume_id: str) -> bytes | None:
        """The wrapped header of a volume; None where none is kept."""
        with self._reading() as rows:
            row = rows.execute("SELECT wrapped FROM headers WHERE volume_id = ?", (volume_id,)).fetchone()
        return None if row is None else self._bytes(row[0])

    def renew_epoch(self, event: Event) -> str:
        """Begin a new life of the register; returns its id."""
        epoch = os.urandom(_EPOCH_BYTES).hex()
        with self._changing("epoch") as now:
            now.rows.execute("UPDATE epoch SET id = ?", (epoch,))
            self._note(now, event)
        return epoch

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of everything, whoever is writing meanwhile, as a SQLite database into an empty file."""
        self._database.copy_to(path)

    def resource(self, path: str) -> bytes:
        """A wrapped resource."""
        with self._reading() as rows:
            row = rows.execute("SELECT wrapped FROM resources WHERE path = ?", (path,)).fetchone()
        if row is None:
            raise NotFound(f"resource {path} does not exist")
        return self._bytes(row[0])

    def put_resource(self, path: str, wrapped: bytes, event: Event) -> None:
        """Store a wrapped resource in place of an older one."""
        with self._changing(path) as now:
            now.rows.execute(_PUT_RESOURCE, (path, wrapped))
            self._note(now, event)

    def delete_resource(self, path: str, event: Event) -> None:
        """Destroy a resource."""
        with self._changing(path) as now:
            if now.rows.execute("DELETE FROM resources WHERE path = ?", (path,)).rowcount == 0:
                raise NotFound(f"resource {path} does not exist")
            self._note(now, event)
        self._database.forget()

    def note(self, event: Event) -> None:
        """Add an entry to the audit log."""
        with self._changing("log") as now:
            self._note(now, event)

    def audit_entries(self) -> list[Entry]:
        """The audit log, oldest entry first."""
        with self._reading() as rows:
            return list(audit.read(rows))

    def verify_audit(self, expected_head: str | None = None) -> tuple[int, str]:
        """See `audit.verify`."""
        with self._reading() as rows:
            return audit.verify(rows, self._seals, expected_head)

    @contextmanager
    def _reading(self) -> Iterator[Rows]:
        with self._database.reading() as rows:
            self._check_key(rows)
            yield rows

    @contextmanager
    def _changing(self, subject: str) -> Iterator[_Change]:
        with self._database.changing(subject) as rows:
            self._check_key(rows)
            change = _Change(rows)
            self._here.rows = rows
            try:
                yield change
            finally:
                del self._here.rows
        if change.noted is not None:
            with self._newest_lock:
                if self._newest is None or self._newest.seq < change.noted.seq:
                    self._newest = change.noted

    def _check_key(self, rows: Rows) -> None:
        """Raise `Unavailable` in a register that another program has brought under another master key.

        What was wrapped by the old one nobody could unwrap any more, and what the new one seals would look tampered with.
        """
        if self._key_check is None:
            return
        row = rows.execute("SELECT wrapped FROM key_check").fetchone()
        if row is None or row[0] != self._key_check:
            raise Unavailable(
                "the register's master key was rotated while this broker was not connected, so it reads and changes "
                "nothing any more: give it the new master.key and start it anew"
            )

    def _bytes(self, value: object) -> bytes:
        """A column of SQLite holds whatever was written into it."""
        if not isinstance(value, bytes):
            raise self._database.damaged("a wrapped secret or header is not bytes")
        return value

    def _present(self, rows: Rows, volume_id: str) -> StoredVolume:
        stored = self._read_volume(rows, volume_id)
        if stored is None:
            raise NotFound(f"volume {volume_id} is not in the register")
        return stored

    def _read_volume(self, rows: Rows, volume_id: str) -> StoredVolume | None:
        row = rows.execute(f"{_SELECT} WHERE volume_id = ?", (volume_id,)).fetchone()
        noted = audit.newest_revisions(rows, volume_id)
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

    def _write(self, now: _Change, stored: StoredVolume, event: Event) -> None:
        """The row and its entry in the log, which names the revision."""
        row, record = row_of(stored), stored.record
        members = (row.volume_id, row.revision, row.record, row.wrapped_secret, row.owner, self._seals.of_row(row))
        now.rows.execute(_PUT_VOLUME, members)
        self._note(now, replace(event, subject=record.volume_id), record.revision)

    def _put_header(self, now: _Change, volume_id: str, wrapped: bytes | None) -> None:
        if wrapped is None:
            now.rows.execute("DELETE FROM headers WHERE volume_id = ?", (volume_id,))
        else:
            now.rows.execute(_PUT_HEADER, (volume_id, wrapped))

    def _note(self, now: _Change, event: Event, revision: int | None = None) -> None:
        self._database.hold_log(now.rows)
        if self._newest is not None:
            audit.check_holds(now.rows, self._newest)
        now.noted = audit.append(now.rows, event, int(self._clock()), self._seals, revision)
