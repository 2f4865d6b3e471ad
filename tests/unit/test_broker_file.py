"""The register's SQLite file: what is destroyed is nowhere in it, and a file that is anything else is refused."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from csi.broker import deadline
from csi.broker import rules as register
from csi.broker.audit import Event
from csi.broker.sqlite import Sqlite
from csi.broker.sqlite_schema import LADDER, connect
from csi.broker.store import Store
from csi.core.errors import NotFound, Refused, Unavailable
from csi.core.sealed import Profile
from csi.kbs.register import VolumeState
from tests.fakes.registers import SEALS, OneFile

EVENT = Event(actor="test", action="tested", subject="pvc-1")
ALLOCATED = register.allocate("pvc-1", Profile.XTS)
WRAPPED = b"wrapped-secret-bytes-that-are-easy-to-find-again"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return OneFile(tmp_path).open()


def test_a_shredded_secret_is_nowhere_in_the_files(store: Store, tmp_path: Path) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    assert any(WRAPPED in path.read_bytes() for path in tmp_path.iterdir())
    store.change("pvc-1", register.shred, EVENT, destroy_secret=True)
    assert not any(WRAPPED in path.read_bytes() for path in tmp_path.iterdir())
    assert store.volume("pvc-1").state is VolumeState.SHREDDED


def test_a_shredding_that_a_reader_delays_is_completed_by_repeating_it(store: Store, tmp_path: Path) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    reader = sqlite3.connect(tmp_path / "broker.sqlite")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM volumes").fetchall()
    with deadline.within(0.05), pytest.raises(Unavailable, match="repeat it"):
        store.change("pvc-1", register.shred, EVENT, destroy_secret=True)
    reader.close()
    store.change("pvc-1", register.shred, EVENT, destroy_secret=True)
    assert not any(WRAPPED in path.read_bytes() for path in tmp_path.iterdir())


def test_a_destroyed_resource_is_nowhere_in_the_files(store: Store, tmp_path: Path) -> None:
    store.put_resource("a/b/c", WRAPPED, EVENT)
    assert store.resource("a/b/c") == WRAPPED
    store.delete_resource("a/b/c", EVENT)
    assert not any(WRAPPED in path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(NotFound):
        store.resource("a/b/c")
    with pytest.raises(NotFound):
        store.delete_resource("a/b/c", EVENT)


def test_a_database_of_a_newer_program_is_refused(store: Store, tmp_path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(tmp_path / "broker.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(Refused, match="newer version"):
        Store(Sqlite(tmp_path / "broker.sqlite"), SEALS)


def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not a database" * 100)
    with pytest.raises(Refused, match=r"not a database.*newest backup"):
        Store(Sqlite(tmp_path / "x"), SEALS)


def database(path: Path, *statements: str) -> bytes:
    with closing(sqlite3.connect(path)) as made:
        for statement in statements:
            made.execute(statement)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["CREATE TABLE other (x)"], "schema version is 0"),
        (["PRAGMA user_version = 1"], "lacks volumes, headers, resources, key_check, epoch, audit, audit_of_volumes"),
        (["CREATE TABLE volumes (x)", "PRAGMA user_version = 1"], "lacks headers, resources"),
    ],
)
def test_a_database_that_init_did_not_write_is_refused_and_left_as_it_is(
    tmp_path: Path, statements: list[str], found: str
) -> None:
    before = database(tmp_path / "x", *statements)
    with pytest.raises(Refused, match=f"{found}.*newest backup"):
        Store(Sqlite(tmp_path / "x"), SEALS)
    assert (tmp_path / "x").read_bytes() == before


@pytest.mark.parametrize("part", ["TABLE key_check", "TRIGGER audit_is_not_changed", "TABLE audit"])
def test_a_database_that_lacks_a_part_is_refused(store: Store, tmp_path: Path, part: str) -> None:
    store.close()
    with closing(sqlite3.connect(tmp_path / "broker.sqlite")) as db:
        db.execute(f"DROP {part}")
    with pytest.raises(Refused, match=f"lacks .*{part.split()[1]}"):
        Store(Sqlite(tmp_path / "broker.sqlite"), SEALS)


def test_a_newer_program_brings_an_older_database_up_the_ladder(store: Store, tmp_path: Path) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    epoch = store.epoch()
    store.close()
    path = tmp_path / "broker.sqlite"
    newer = (*LADDER, "CREATE TABLE more (x); INSERT INTO more SELECT volume_id FROM volumes;")
    for _ in range(2):
        with closing(connect(path, newer)) as db:
            assert db.execute("SELECT x FROM more").fetchall() == [("pvc-1",)]
            assert db.execute("SELECT id FROM epoch").fetchone() == (epoch,)
    with pytest.raises(Refused, match=r"newer version of this program \(schema 2\)"):
        Store(Sqlite(path), SEALS)


def test_a_rung_that_breaks_leaves_the_database_as_it_was(store: Store, tmp_path: Path) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    store.close()
    path = tmp_path / "broker.sqlite"
    with pytest.raises(Refused, match="no such table"):
        connect(path, (*LADDER, "CREATE TABLE more (x); DROP TABLE volumes; INSERT INTO nowhere VALUES (1);"))
    assert Store(Sqlite(path), SEALS).volume("pvc-1") == ALLOCATED


@pytest.mark.parametrize("kept", [0, 1, 50, 100, 512, 4096, 5000, -4096])
def test_a_truncated_database_is_refused(store: Store, tmp_path: Path, kept: int) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    store.close()
    path = tmp_path / "broker.sqlite"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(Refused, match="newest backup"):
        Store(Sqlite(path), SEALS)


@pytest.mark.parametrize(("content", "found"), [(b"", "file is empty"), (b"noise" * 1000, "file is not a database")])
def test_a_destroyed_database_does_not_lose_its_write_ahead_log(
    store: Store, tmp_path: Path, content: bytes, found: str
) -> None:
    store.allocate(ALLOCATED, WRAPPED, EVENT)
    log = (tmp_path / "broker.sqlite-wal").read_bytes()
    (tmp_path / "x").write_bytes(content)
    (tmp_path / "x-wal").write_bytes(log)
    with pytest.raises(Refused, match=rf"{found}.*newest backup"):
        Store(Sqlite(tmp_path / "x"), SEALS)
    assert (tmp_path / "x-wal").read_bytes() == log


def test_a_lost_database_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Store(Sqlite(tmp_path / "x"), SEALS)
    assert list(tmp_path.iterdir()) == []
