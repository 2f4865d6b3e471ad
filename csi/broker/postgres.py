"""The register in PostgreSQL, for several brokers side by side. See decision 0036.

Whoever changes a subject (a volume, a path) holds its lock to the end of the transaction, and whoever adds to the audit log
holds the log's, always in this order: what was read is still so when it is written, and nothing can deadlock or has to be
repeated. A lost connection loses its transaction; the guest asks again, which every request of the protocol allows.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import psycopg
from psycopg import errors
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict

from csi.broker import deadline, sqlite_schema
from csi.broker import postgres_schema as schema
from csi.broker.database import BUSY_SECONDS, TABLES, Found, Rows, copy_rows
from csi.core.errors import Busy, InvalidInput, NotFound, Refused, SealedLocalError, Unavailable
from csi.core.secret import Secret

_PROBE_SECONDS: Final = 1.0
_WHOLE_SECONDS: Final = 3600.0
"""For whatever reads or writes all of it."""
_CONNECTIONS: Final = 16
"""At most at one time for each broker; PostgreSQL's default is 100 for all of its clients."""
_SETTLE_SECONDS: Final = 0.2
"""How much longer than the server, which is told of the deadline, the client waits for the server to keep it."""
_GONE_SECONDS: Final = 2.0
_LOG_LOCK: Final = 0x5EA1ED0
_USERS_LOCK: Final = 0x5EA1ED1
_DAMAGED: Final = ("XX",)
"""Classes of SQLSTATE: data corrupted. With everything else trying again may help, or an operator mends the server."""


class Link(psycopg.Connection[tuple[object, ...]]):
    """A connection that never waits longer than the request: also where the server is there and says nothing."""

    def wait(self, gen: PQGen, interval: float = 0.1, timeout: float | None = None) -> object:  # type: ignore[override,type-arg]
        """See `psycopg.Connection.wait`."""
        ends = deadline.remaining(BUSY_SECONDS) + _SETTLE_SECONDS
        return super().wait(gen, interval, ends if timeout is None else min(ends, timeout))


class _Statements:
    """Gives a connection the store's statements, whose parameters are `?`."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def execute(self, statement: str, parameters: Sequence[object] = (), /) -> Found:
        """See `Rows`."""
        if not parameters:
            return self.link.execute(statement.encode())
        return self.link.execute(statement.replace("?", "%s").encode(), parameters)


class Postgres:
    """The open register, see `csi.broker.database.Database`. A thread has a connection of its own while it works."""

    def __init__(self, conninfo: Secret, *, close: Callable[[], object] = lambda: None) -> None:
        """Raises `Unavailable` where the server can't be reached, `Refused` where it has no register of this version.

        `conninfo` is what libpq takes, and may hold a password. `close` is called at the end.
        """
        self._server = _Server(conninfo)
        self._close = close
        self._places = threading.BoundedSemaphore(_CONNECTIONS)
        self._idle: list[Link] = []
        try:
            with self.reading() as rows:
                _check(self, rows)
        except BaseException:
            self._drop_idle()
            raise

    def close(self) -> None:
        """See `Database`."""
        self._drop_idle()
        self._close()

    @contextmanager
    def changing(self, subject: str) -> Iterator[Rows]:
        """READ COMMITTED: what is read after the lock was had is what its last holder stored."""
        with self._transaction(f"BEGIN; {_timeouts()}; SELECT pg_advisory_xact_lock({_lock_of(subject)})") as link:
            yield _Statements(link)
            link.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """See `Database`."""
        with self._transaction(f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_timeouts()}") as link:
            yield _Statements(link)
            link.execute("ROLLBACK")

    def hold_log(self, rows: Rows) -> None:
        """See `Database`."""
        rows.execute(f"SELECT pg_advisory_xact_lock({_LOG_LOCK})")

    def forget(self) -> None:
        """Nothing can be done from here: the server keeps old rows until it vacuums, and its log as long as it archives."""

    def probe(self, look: Callable[[Rows], None]) -> None:
        """A connection of its own, so that it waits for nothing that waits here. A standby can't change anything."""
        with deadline.within(_PROBE_SECONDS), self._server.translated(), closing(self._server.connect()) as link:
            link.execute(f"BEGIN; {_timeouts()}; SELECT pg_advisory_xact_lock({_LOG_LOCK})".encode())
            if link.execute("SHOW transaction_read_only").fetchone() != ("off",):
                raise Unavailable(f"{self._server.name} takes no changes: it is a standby, or set to be read only")
            link.execute("SELECT id FROM epoch").fetchone()
            look(_Statements(link))

    def check_integrity(self) -> None:
        """Read every row: where the server has checksums it compares them, and says so."""
        with deadline.within(_WHOLE_SECONDS), self.reading() as rows:
            for table in TABLES:
                rows.execute(f"SELECT count(every) FROM {table} AS every").fetchone()  # noqa: S608

    def copy_to(self, path: Path) -> None:
        """See `Database`."""
        with deadline.within(_WHOLE_SECONDS), self.reading() as rows:
            _copy(rows, path)

    def damaged(self, found: str) -> Refused:
        """See `Database`."""
        return self._server.damaged(found)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Link]:
        if not self._places.acquire(timeout=deadline.remaining(BUSY_SECONDS)):
            raise Unavailable("all connections to the register's database are busy; try again")
        try:
            with self._server.translated():
                link = self._begun(begin.encode())
                try:
                    yield link
                finally:
                    self._give_back(link)
        finally:
            self._places.release()

    def _begun(self, begin: bytes) -> Link:
        """A connection in a new transaction. One that was idle may be dead, of a server that was started again or another
        one now; nothing was done in it, so one that is made anew is tried in its place, once.
        """
        try:
            link = self._idle.pop()
        except IndexError:
            return _try(self._server.connect(), begin)
        try:
            return _try(link, begin)
        except errors.QueryCanceled:
            raise
        except psycopg.OperationalError:
            if deadline.remaining(BUSY_SECONDS) <= 0:
                raise
            self._drop_idle()
            return _try(self._server.connect(), begin)

    def _give_back(self, link: Link) -> None:
        """Whatever went wrong inside: what is not finished is rolled back, or its connection is dropped."""
        try:
            if not link.closed and link.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
                link.execute("ROLLBACK")
        except psycopg.Error:
            link.close()
        if not link.closed:
            self._idle.append(link)

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


def make(conninfo: Secret) -> bool:
    """Make an empty register in a database that has none; False where one is there already."""
    server = _Server(conninfo)
    with server.translated(), closing(server.connect()) as link:
        link.execute("BEGIN")
        rows = _Statements(link)
        if schema.present(rows):
            return False
        schema.make(rows)
        link.execute("COMMIT")
    return True


def exists(conninfo: Secret) -> bool:
    """Whether there is a register, whole or not."""
    server = _Server(conninfo)
    with server.translated(), closing(server.connect()) as link:
        return bool(schema.present(_Statements(link)))


class Sole:
    """The register's only user, for a restore or a rotation of the master key."""

    def __init__(self, link: Link) -> None:
        self._rows = _Statements(link)

    def copy_to(self, path: Path) -> bool:
        """See `Database`; False, and nothing written, where there is no register."""
        if not (present := schema.present(self._rows)):
            return False
        if missing := schema.missing(self._rows):
            raise Refused(
                f"the database has {', '.join(sorted(present))} of a register and not {', '.join(missing)}. What is left "
                "would be lost: give its schema another name (ALTER SCHEMA), make an empty one, and repeat"
            )
        _copy(self._rows, path)
        return True

    @contextmanager
    def changing(self) -> Iterator[Rows]:
        """A transaction, stored when the block ends without an error."""
        self._rows.execute("BEGIN")
        yield self._rows
        self._rows.execute("COMMIT")

    def replace(self, made: Path) -> None:
        """Put the register of the SQLite file `made` in the place of what is here, in one transaction."""
        self._rows.execute("BEGIN")
        schema.remove(self._rows)
        schema.make(self._rows)
        with closing(sqlite_schema.plainly(made, BUSY_SECONDS)) as source:
            copy_rows(source, self._rows)
        self._rows.execute("COMMIT")


@contextmanager
def sole(conninfo: Secret) -> Iterator[Sole]:
    """Use the database alone until the end of the block; raises `Busy` while any broker or command uses it."""
    server = _Server(conninfo)
    with deadline.within(_WHOLE_SECONDS), server.translated(), closing(server.connect(alone=True)) as link:
        yield Sole(link)


def _copy(rows: Rows, path: Path) -> None:
    path.write_bytes(sqlite_schema.empty_database())
    with closing(sqlite_schema.plainly(path, BUSY_SECONDS)) as copy:
        copy.execute("BEGIN")
        copy_rows(rows, copy)
        copy.execute("COMMIT")


class _Server:
    def __init__(self, conninfo: Secret) -> None:
        self._conninfo = conninfo
        try:
            told = conninfo_to_dict(conninfo.reveal().decode())
        except (psycopg.ProgrammingError, UnicodeDecodeError):
            # Its text would show the password.
            raise InvalidInput("database", "not a connection string of PostgreSQL") from None
        self.name = f"the register's database {told.get('dbname', '')} at {told.get('host', 'this machine')}"

    def connect(self, *, alone: bool = False) -> Link:
        """A new connection, counted among the register's users until it ends.

        `synchronous_commit`: what is answered is stored, whatever the server's own setting says.
        """
        link = Link.connect(
            self._conninfo.reveal().decode(),
            autocommit=True,
            connect_timeout=int(min(BUSY_SECONDS, max(2.0, deadline.remaining(BUSY_SECONDS)))),
            application_name="sealed-local broker",
            options="-c synchronous_commit=on -c client_encoding=UTF8",
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
        )
        try:
            link.execute(_as_user(alone=alone))
        except errors.LockNotAvailable as error:
            link.close()
            what = "a broker or a command uses it; stop every one of them first" if alone else "a restore is at work"
            raise Busy(f"{self.name}: {what}") from error
        except BaseException:
            link.close()
            raise
        return link

    @contextmanager
    def translated(self) -> Iterator[None]:
        """What PostgreSQL says becomes an error of ours: whether to try again, or that the register is damaged."""
        try:
            yield
        except psycopg.Error as error:
            raise self._meaning(error) from error

    def damaged(self, found: str) -> Refused:
        return Refused(
            f"{self.name} is not what `sealed-local broker` wrote: {found}. Restore the newest backup with "
            "`sealed-local broker restore`; with an empty register in its place guests could format volumes that hold data"
        )

    def _meaning(self, error: psycopg.Error) -> SealedLocalError:
        state = error.sqlstate or ""
        if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn) or state[:2] in _DAMAGED:
            return self.damaged(str(error).splitlines()[0])
        first = next(iter(str(error).splitlines()), type(error).__name__)
        return Unavailable(f"{self.name}: {first}; try again")


def _try(link: Link, begin: bytes) -> Link:
    try:
        link.execute(begin)
    except BaseException:
        link.close()
        raise
    return link


def _check(database: Postgres, rows: Rows) -> None:
    if missing := schema.missing(rows):
        if len(missing) == len(TABLES) + 2:
            raise NotFound("the database has no register; `sealed-local broker init` makes one in a new directory")
        raise database.damaged(f"it lacks {', '.join(missing)}")
    if (found := schema.version(rows)) != schema.VERSION:
        raise Refused(f"the register's tables have version {found}; this program has {schema.VERSION}")


def _as_user(*, alone: bool) -> bytes:
    """Take the lock of the register's users for the connection's whole life. A user that was killed may be one still for a
    moment, until the server has noticed.
    """
    milliseconds = max(1, int(1000 * min(_GONE_SECONDS, deadline.remaining(BUSY_SECONDS))))
    kind = "" if alone else "_shared"
    lock = f"SELECT pg_advisory_lock{kind}({_USERS_LOCK})"
    return f"SET lock_timeout = {milliseconds}; {lock}; SET lock_timeout = 0".encode()


def _timeouts() -> str:
    """The server gives up when the request does; 0 would mean never."""
    milliseconds = max(1, int(1000 * deadline.remaining(BUSY_SECONDS)))
    return f"SET LOCAL statement_timeout = {milliseconds}"


def _lock_of(subject: str) -> int:
    """PostgreSQL's locks have numbers. Two subjects with one number wait for each other, and that is all."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big", signed=True)
