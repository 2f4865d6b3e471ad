"""The audit log: who was given what, in a chain of hashes. Each entry carries the digest of the one before it, signed.

Altering or removing an entry breaks the chain, and writing the chain anew takes the broker's `audit.key`. Cutting entries
off its end does not show; whoever must detect that keeps the newest digest elsewhere and gives it to `verify`.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from csi.broker.database import Rows
from csi.broker.seals import Seals
from csi.core.errors import Tampered

GENESIS = "0" * 64
OPERATOR = "operator"
"""The actor of every command: whoever may write the broker's directory."""
_MINUTE = 60.0
_TYPES = (int, int, str, str, str, str, int | None, str, str, bytes)
_MAX_CHARACTERS = 1000


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
    revision: int | None = None
    """The revision of the volume's record from this entry on; None where the entry changed no volume."""
    previous: str
    digest: str
    signature: bytes
    """By the broker's `audit.key`, over the digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an entry stands in the log."""

    seq: int
    digest: str


class Ration:
    """Notes `limit` events of a kind a minute, and of those beyond only how many they were: the log must not fill a disk
    at the wish of those who are refused. Thread-safe.
    """

    def __init__(self, note: Callable[[Event], None], *, clock: Callable[[], float], limit: int) -> None:
        self._note = note
        self._clock = clock
        self._limit = limit
        self._lock = threading.Lock()
        self._minute_began = -_MINUTE
        self._noted = 0
        self._left_out = 0
        self._last_left_out: Event | None = None

    def note(self, event: Event) -> None:
        """Write it, or count it; the count is written with the first event of a later minute."""
        event = replace(event, subject=event.subject[:_MAX_CHARACTERS], detail=event.detail[:_MAX_CHARACTERS])
        with self._lock:
            now = self._clock()
            if not 0 <= now - self._minute_began < _MINUTE:
                self._tell_left_out()
                self._minute_began, self._noted = now, 0
            if self._noted < self._limit:
                self._noted += 1
                self._note(event)
            else:
                self._left_out += 1
                self._last_left_out = event

    def flush(self) -> None:
        """Write the count now."""
        with self._lock:
            self._tell_left_out()

    def _tell_left_out(self) -> None:
        if self._last_left_out is None:
            return
        count, last = self._left_out, self._last_left_out
        self._left_out, self._last_left_out = 0, None
        self._note(replace(last, detail=f"{count} more in that minute; the last: {last.detail}"))


def append(rows: Rows, event: Event, time_unix: int, seals: Seals, revision: int | None = None) -> Place:
    """Add an entry inside the caller's transaction: a change and its entry are stored together or not at all."""
    last = rows.execute("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (last[0] + 1, last[1]) if last else (1, GENESIS)
    event = _storable(event)
    digest = _digest(seq, time_unix, event, revision, previous)
    members = (
        event.actor,
        event.action,
        event.subject,
        event.detail,
        revision,
        previous,
        digest,
        seals.of_head(digest),
    )
    rows.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (seq, time_unix, *members))
    return Place(seq=seq, digest=digest)


def check_holds(rows: Rows, place: Place) -> None:
    """Raise `Tampered` unless the log still has this entry, which was stored: otherwise an older state is in its place."""
    found = rows.execute("SELECT digest FROM audit WHERE seq = ?", (place.seq,)).fetchone()
    if found is None or found[0] != place.digest:
        raise Tampered(
            f"the register went back: its audit log does not hold entry {place.seq} any more, which this broker has seen "
            "stored. Stop every broker of it; docs/broker.md says what to do"
        )


def read(rows: Rows) -> Iterator[Entry]:
    """All entries, oldest first. Raises `Tampered` for a member of another type than was written."""
    found = rows.execute(
        "SELECT seq, time_unix, actor, action, subject, detail, revision, previous, digest, signature "
        "FROM audit ORDER BY seq"
    )
    for row in found.fetchall():
        # SQLite stores any type in any column.
        if not all(isinstance(value, kind) for value, kind in zip(row, _TYPES, strict=True)):
            raise Tampered(f"audit entry {row[0]}: a member has another type than was written")
        seq, time_unix, actor, action, subject, detail, revision, previous, digest, signature = row
        yield Entry(
            seq=seq,
            time_unix=time_unix,
            event=Event(actor=actor, action=action, subject=subject, detail=detail),
            revision=revision,
            previous=previous,
            digest=digest,
            signature=signature,
        )


def newest_revisions(rows: Rows, volume_id: str | None = None) -> dict[str, object]:
    """The revision that the log says each volume has, or the one volume."""
    one = ("AND subject = ?", (volume_id,)) if volume_id is not None else ("", ())
    query = f"SELECT subject, max(revision) FROM audit WHERE revision IS NOT NULL {one[0]} GROUP BY subject"  # noqa: S608
    return dict(rows.execute(query, one[1]).fetchall())


def verify(rows: Rows, seals: Seals, expected_head: str | None = None) -> tuple[int, str]:
    """Check the whole chain; returns the number of entries and the newest digest. Raises `Tampered` at the first break.

    `expected_head`, a digest noted earlier, must still be in the chain.
    """
    count, head, seen = 0, GENESIS, expected_head is None
    for entry in read(rows):
        count += 1
        if entry.seq != count or entry.previous != head:
            raise Tampered(f"audit entry {entry.seq}: an entry before it is missing or was replaced")
        if entry.digest != _digest(entry.seq, entry.time_unix, entry.event, entry.revision, entry.previous):
            raise Tampered(f"audit entry {entry.seq}: its content was altered")
        seals.check_head(entry.seq, entry.digest, entry.signature)
        head = entry.digest
        seen = seen or head == expected_head
    if not seen:
        raise Tampered(f"the audit log does not hold the entry with digest {expected_head}: its end was cut off")
    return count, head


def _storable(event: Event) -> Event:
    """PostgreSQL keeps no NUL in a text, and what is refused must be noted whatever it is called."""
    members = (event.actor, event.action, event.subject, event.detail)
    actor, action, subject, detail = (text.replace("\0", "\N{REPLACEMENT CHARACTER}") for text in members)
    return Event(actor=actor, action=action, subject=subject, detail=detail)


def _digest(seq: int, time_unix: int, event: Event, revision: int | None, previous: str) -> str:
    members = [seq, time_unix, event.actor, event.action, event.subject, event.detail, revision, previous]
    return hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).hexdigest()
