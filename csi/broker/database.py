"""What the broker's store needs of a database. There are two: one file (`csi.broker.sqlite`), and a server that several
brokers share (`csi.broker.postgres`).

The store's statements are the SQL that both understand, with `?` for each parameter.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from csi.core.errors import Refused

BUSY_SECONDS: Final = 10.0
"""How long to wait for others where no request sets an end."""
TABLES: Final = {
    "volumes": ("volume_id", "revision", "record", "wrapped_secret", "owner", "mac"),
    "headers": ("volume_id", "wrapped"),
    "resources": ("path", "wrapped"),
    "key_check": ("wrapped",),
    "epoch": ("id",),
    "audit": (
        "seq",
        "time_unix",
        "actor",
        "action",
        "subject",
        "detail",
        "revision",
        "previous",
        "digest",
        "signature",
    ),
}
"""Everything that a register is, whichever database holds it."""


class Found(Protocol):
    """What a statement found."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def fetchone(self) -> Any:
        """The next row, None after the last."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""


class Rows(Protocol):
    """An open transaction."""

    def execute(self, statement: str, parameters: Sequence[object] = (), /) -> Found:
        """Carry out one statement."""


class Database(Protocol):
    """Transactions for the threads of one process, beside other processes. What goes wrong is an error of ours."""

    def changing(self, subject: str) -> AbstractContextManager[Rows]:
        """A transaction in which nobody else changes `subject` (a volume, a path), and which sees what was stored before.

        Stored at the end of the block and then safe from a crash; an error inside leaves everything as it was.
        """

    def reading(self) -> AbstractContextManager[Rows]:
        """Everything as it was at one moment."""

    def hold_log(self, rows: Rows) -> None:
        """From here to the end of a changing transaction nobody else adds to the audit log."""

    def forget(self) -> None:
        """Destroy what the database still keeps of rows that are gone, as far as it can."""

    def probe(self, look: Callable[[Rows], None]) -> None:
        """See whether a change could be made now; raises `Unavailable` or `Refused`, after a second at the latest, or
        whatever `look` raises, which may read.
        """

    def check_integrity(self) -> None:
        """Read everything; raises `Refused` when it is damaged anywhere."""

    def copy_to(self, path: Path) -> None:
        """Write everything as it was at one moment into the empty file `path`, as a SQLite database."""

    def damaged(self, found: str) -> Refused:
        """The error for a database that can't be the register; says what to do."""

    def close(self) -> None:
        """End it cleanly; killing the process instead loses nothing, either."""


def holds_secrets(rows: Rows) -> bool:
    """Whether a secret was ever stored here."""
    query = "SELECT EXISTS (SELECT 1 FROM volumes) OR EXISTS (SELECT 1 FROM resources)"
    return bool(rows.execute(query).fetchone()[0])


def holds_entries(rows: Rows) -> bool:
    """Whether anything was ever noted in the audit log."""
    return bool(rows.execute("SELECT EXISTS (SELECT 1 FROM audit)").fetchone()[0])


def copy_rows(source: Rows, target: Rows) -> None:
    """Put all rows of one register in the place of those of another, which was just made."""
    target.execute("DELETE FROM epoch")
    for table, columns in TABLES.items():
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        found = source.execute(f"SELECT {names} FROM {table}")  # noqa: S608 names of our own
        while (row := found.fetchone()) is not None:
            target.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", row)  # noqa: S608
