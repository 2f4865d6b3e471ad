"""The audit log: who was given what, in a chain of hashes. Each entry carries the digest of the one before it.

Altering or removing an entry breaks the chain. Cutting entries off its end does not; whoever must detect that, keeps the
digest of the newest entry elsewhere and gives it to `verify`.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from csi.model.errors import Tampered

GENESIS = "0" * 64

SCHEMA = """
CREATE TABLE IF NOT EXISTS audit (
  seq INTEGER PRIMARY KEY, time_unix INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
  subject TEXT NOT NULL, detail TEXT NOT NULL, previous TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS audit_is_not_changed BEFORE UPDATE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_is_not_shortened BEFORE DELETE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something to remember: who did what to what. `detail` never holds a secret."""

    actor: str
    action: str
    subject: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the log."""

    seq: int
    time_unix: int
    event: Event
    previous: str
    digest: str


def append(connection: sqlite3.Connection, event: Event, time_unix: int) -> None:
    """Add an entry inside the caller's transaction: a change and its entry are stored together or not at all."""
    last = connection.execute("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (last[0] + 1, last[1]) if last else (1, GENESIS)
    digest = _digest(seq, time_unix, event, previous)
    connection.execute(
        "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (seq, time_unix, event.actor, event.action, event.subject, event.detail, previous, digest),
    )


def read(connection: sqlite3.Connection) -> Iterator[Entry]:
    """All entries, oldest first."""
    rows = connection.execute(
        "SELECT seq, time_unix, actor, action, subject, detail, previous, digest FROM audit ORDER BY seq"
    )
    for seq, time_unix, actor, action, subject, detail, previous, digest in rows:
        event = Event(actor=actor, action=action, subject=subject, detail=detail)
        yield Entry(seq=seq, time_unix=time_unix, event=event, previous=previous, digest=digest)


def verify(connection: sqlite3.Connection, expected_head: str | None = None) -> tuple[int, str]:
    """Check the whole chain; answers the number of entries and the newest digest. Raises `Tampered` at the first break.

    `expected_head`, a digest noted earlier, must still be in the chain.
    """
    count, head, seen = 0, GENESIS, expected_head is None
    for entry in read(connection):
        count += 1
        if entry.seq != count or entry.previous != head:
            raise Tampered(f"audit entry {entry.seq}: an entry before it is missing or was replaced")
        if entry.digest != _digest(entry.seq, entry.time_unix, entry.event, entry.previous):
            raise Tampered(f"audit entry {entry.seq}: its content was altered")
        head = entry.digest
        seen = seen or head == expected_head
    if not seen:
        raise Tampered(f"the audit log does not hold the entry with digest {expected_head}: its end was cut off")
    return count, head


def _digest(seq: int, time_unix: int, event: Event, previous: str) -> str:
    members = [seq, time_unix, event.actor, event.action, event.subject, event.detail, previous]
    return hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).hexdigest()
