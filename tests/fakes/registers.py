"""An empty register in each database, and what others than the broker may do to it."""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from csi.broker import postgres as postgres_database
from csi.broker.postgres import Postgres
from csi.broker.seals import Seals
from csi.broker.sqlite import Sqlite
from csi.broker.sqlite_schema import empty_database
from csi.broker.store import Store
from csi.broker.vault import Vault
from csi.core.secret import Secret
from tests.fakes.postgres import Server

SEALS = Seals(vault=Vault(Secret(bytes(32))), signer=Ed25519PrivateKey.from_private_bytes(bytes(32)))


class OneFile:
    """A register in a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "broker.sqlite"
        self.path.write_bytes(empty_database())

    def open(self, clock: Callable[[], float] = time.time) -> Store:
        return Store(Sqlite(self.path), SEALS, clock=clock)

    def other_hands(self, statement: str) -> int:
        """A statement by whoever can write the database; returns how many rows it changed."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            return db.execute(statement).rowcount

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Somebody else is in the middle of a change, and stays there."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")

    def drop_triggers(self) -> None:
        self.other_hands("DROP TRIGGER audit_is_not_changed")
        self.other_hands("DROP TRIGGER audit_is_not_shortened")

    def words(self) -> tuple[str, str]:
        """For a program that opens it: an expression with `argument`, and that argument."""
        return "Sqlite(Path(argument))", str(self.path)


class OnServer:
    """A register in PostgreSQL."""

    def __init__(self, server: Server, *, empty: bool = False) -> None:
        """With `empty` there is not even a register yet."""
        self.server = server
        self.name = server.new_database()
        self.conninfo = Secret(server.conninfo(self.name).encode())
        assert empty or postgres_database.make(self.conninfo)

    def open(self, clock: Callable[[], float] = time.time) -> Store:
        return Store(Postgres(self.conninfo), SEALS, clock=clock)

    def other_hands(self, statement: str) -> int:
        """See `OneFile`."""
        with closing(self.server.connect(self.name)) as link:
            return link.execute(re.sub(r"(?<= )x'([0-9a-f]*)'", r"'\\x\1'::bytea", statement).encode()).rowcount

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See `OneFile`."""
        other = Postgres(self.conninfo)
        with other.changing("test") as rows:
            other.hold_log(rows)
            yield
        other.close()

    def drop_triggers(self) -> None:
        self.other_hands("DROP TRIGGER audit_is_not_changed ON audit")

    def words(self) -> tuple[str, str]:
        """See `OneFile`."""
        return "Postgres(Secret(argument.encode()))", self.conninfo.reveal().decode()


Register = OneFile | OnServer
