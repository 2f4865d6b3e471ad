"""The shape of the broker's SQLite file, and opening one. A file that is anything else is refused and left as it is.

The shape has a number (`user_version`). A newer program brings an older database up the ladder, one rung at a time, each in
one transaction; an older program refuses a newer database.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from csi.broker.database import BUSY_SECONDS
from csi.core.errors import Refused, SealedLocalError, Unavailable

_MAGIC = b"SQLite format 3\0"
_TRY_AGAIN = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}

ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What reading a database may raise; the second where a name or a text in it is damaged."""

Ladder = tuple[str, ...]
"""Rung `n` (counted from 0) is the SQL that makes version `n + 1` out of version `n`. Once released it is never changed."""

LADDER: Ladder = (
    """
CREATE TABLE volumes (
  volume_id TEXT PRIMARY KEY, revision INTEGER NOT NULL, record TEXT NOT NULL, wrapped_secret BLOB,
  owner TEXT, mac BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE headers (volume_id TEXT PRIMARY KEY, wrapped BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE resources (path TEXT PRIMARY KEY, wrapped BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE key_check (wrapped BLOB NOT NULL);
CREATE TABLE epoch (id TEXT NOT NULL);
INSERT INTO epoch VALUES (lower(hex(randomblob(16))));
CREATE TABLE audit (
  seq INTEGER PRIMARY KEY, time_unix INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
  subject TEXT NOT NULL, detail TEXT NOT NULL, revision INTEGER, previous TEXT NOT NULL, digest TEXT NOT NULL,
  signature BLOB NOT NULL);
CREATE INDEX audit_of_volumes ON audit (subject, revision) WHERE revision IS NOT NULL;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_not_shortened BEFORE DELETE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
""",
)


def empty_database() -> bytes:
    """The bytes of a database without content, for `init` alone: anywhere else a file without the tables is a damaged one.

    Written as a whole file, it is never seen half made.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        _climb(made, 0, LADDER)
        return made.serialize()


def connect(path: Path, ladder: Ladder = LADDER) -> sqlite3.Connection:
    """Open a database and bring it to the newest version.

    Raises `Refused` for a file that is damaged or from a newer program, `Unavailable` where trying again may help.
    """
    # SQLite takes a file without bytes for an empty database, and removes the write-ahead log beside that and beside noise.
    with path.open("rb") as file:
        begin = file.read(len(_MAGIC))
    if begin != _MAGIC:
        raise damaged(path, "the file is not a database" if begin else "the file is empty")
    try:
        db = plainly(path, BUSY_SECONDS)
    except ERRORS as error:
        raise translated(error, path) from error
    try:
        _check_version(db, path, ladder)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        # Freed pages are overwritten with zeros: a shredded secret must not survive in the file.
        db.execute("PRAGMA secure_delete = ON")
    except BaseException as error:
        db.close()
        if isinstance(error, ERRORS):
            raise translated(error, path) from error
        raise
    return db


def plainly(path: Path, timeout: float) -> sqlite3.Connection:
    """Open an existing database without a look at it. `timeout` in seconds: how long to wait for its lock."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def check_integrity(db: sqlite3.Connection, path: Path) -> None:
    """Read every page; raises `Refused` when the file is damaged anywhere."""
    try:
        found = [row[0] for row in db.execute("PRAGMA integrity_check(1)")]
    except ERRORS as error:
        raise translated(error, path) from error
    if found != ["ok"]:
        raise damaged(path, " ".join(str(found[0] if found else "no answer").split()))


def damaged(path: Path, found: str) -> Refused:
    """The error for a file that can't be the register; says what to do."""
    return Refused(
        f"{path} is not what `sealed-local broker init` wrote: {found}. Restore the newest backup with "
        "`sealed-local broker restore`; with an empty register in its place guests could format volumes that hold data"
    )


def translated(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> SealedLocalError:
    """What SQLite says as an error of ours: whether to try again, or that the file is damaged."""
    # The low byte is the class of an error; the rest tells its variants apart.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _TRY_AGAIN:
        return Unavailable(f"the register's database: {error}")
    return damaged(path, str(error))


def _check_version(db: sqlite3.Connection, path: Path, ladder: Ladder) -> None:
    """With an empty register in the place of the real one, guests could format volumes that hold data."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(ladder):
        raise Refused(f"{path} was written by a newer version of this program (schema {version})")
    if version < 1:
        raise damaged(path, f"its schema version is {version}, not {len(ladder)}")
    _check_parts(db, path, ladder[:version])
    _climb(db, version, ladder)


def _check_parts(db: sqlite3.Connection, path: Path, ladder: Ladder) -> None:
    parts = re.findall(r"CREATE (?:TABLE|TRIGGER|INDEX) (\w+)", "".join(ladder))
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if missing := [name for name in parts if name not in found]:
        raise damaged(path, f"it lacks {', '.join(missing)}")


def _climb(db: sqlite3.Connection, version: int, ladder: Ladder) -> None:
    for number, rung in enumerate(ladder[version:], version + 1):
        # Another process may climb at the same time: the version is looked at again inside the transaction.
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute("PRAGMA user_version").fetchone()[0] < number:
                for statement in _statements(rung):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


def _statements(text: str) -> list[str]:
    """`executescript` would commit first, so statements go in one by one; a trigger's body has semicolons of its own."""
    done, begun = [], ""
    for part in text.split(";")[:-1]:
        begun += f"{part};"
        if sqlite3.complete_statement(begun):
            done.append(begun)
            begun = ""
    return done
