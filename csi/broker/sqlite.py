"""The register in one SQLite file, for one broker and the commands beside it."""

import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from csi.broker import deadline
from csi.broker import sqlite_schema as schema
from csi.broker.database import BUSY_SECONDS, Rows
from csi.core.errors import Refused, Unavailable

_PROBE_SECONDS = 1.0
_STEP_SECONDS = 0.25


class Sqlite:
    """The open file, see `csi.broker.database.Database`. It takes one change at a time, of threads and of processes."""

    def __init__(self, path: Path, *, close: Callable[[], object] = lambda: None) -> None:
        """Open a file that `init` made; raises `Refused` for any other, and leaves that as it is.

        `close` is called when it is closed.
        """
        self._close = close
        self._path = path
        self._lock = threading.Lock()
        self._db = schema.connect(path)
        self._milliseconds = -1
        """How long this connection waits for another one's lock."""

    def close(self) -> None:
        """See `Database`."""
        self._db.close()
        self._close()

    @contextmanager
    def changing(self, subject: str) -> Iterator[Rows]:
        """IMMEDIATE takes the write lock before anything is read, which makes compare-and-set of what is read sound."""
        with self._transaction("BEGIN IMMEDIATE", "COMMIT") as rows:
            yield rows

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """See `Database`."""
        with self._transaction("BEGIN", "ROLLBACK") as rows:
            yield rows

    def hold_log(self, rows: Rows) -> None:
        """Nothing to do: the whole file is locked."""

    def forget(self) -> None:
        """Empty the write-ahead log, which still holds the pages as they were before a secret was destroyed."""
        with self._alone():
            busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise Unavailable("the secret is destroyed in the database but not yet in its write-ahead log; repeat it")

    def probe(self, look: Callable[[Rows], None]) -> None:
        """A connection of its own, so that it waits for nothing that waits here."""
        try:
            with closing(schema.plainly(self._path, _PROBE_SECONDS)) as db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("SELECT id FROM epoch").fetchone()
                look(db)
                db.execute("ROLLBACK")
        except schema.ERRORS as error:
            raise schema.translated(error, self._path) from error

    def check_integrity(self) -> None:
        """See `Database`."""
        with self._alone():
            schema.check_integrity(self._db, self._path)

    def copy_to(self, path: Path) -> None:
        """See `Database`."""
        with self._alone(), closing(sqlite3.connect(path)) as copy:
            self._db.backup(copy)

    def damaged(self, found: str) -> Refused:
        """See `Database`."""
        return schema.damaged(self._path, found)

    @contextmanager
    def _transaction(self, begin: str, end: str) -> Iterator[Rows]:
        with self._alone():
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute(end)
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _wait_for_others(self) -> None:
        """Wait for a lock as long as the request may, and at most a step longer: most have all of their time left, and say
        nothing new.
        """
        wanted = math.ceil(deadline.remaining(BUSY_SECONDS) / _STEP_SECONDS) * int(1000 * _STEP_SECONDS)
        if wanted != self._milliseconds:
            self._db.execute(f"PRAGMA busy_timeout = {wanted}")
            self._milliseconds = wanted

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread at a time, by the request's deadline; what SQLite raises becomes an error of ours."""
        if not self._lock.acquire(timeout=deadline.remaining(BUSY_SECONDS)):
            raise Unavailable("the register's database is busy; try again")
        try:
            self._wait_for_others()
            yield
        except schema.ERRORS as error:
            raise schema.translated(error, self._path) from error
        finally:
            self._lock.release()
