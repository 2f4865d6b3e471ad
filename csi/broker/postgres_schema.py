"""The shape of the register in PostgreSQL, in the schema that the connection names, usually `public`."""

from typing import Final

from csi.broker.database import TABLES, Rows

VERSION: Final = 1
_VERSION_TABLE = "register_version"
_TABLES: Final = (*TABLES, "signs", _VERSION_TABLE)

_EMPTY: Final = f"""
CREATE TABLE {_VERSION_TABLE} (version INTEGER NOT NULL);
INSERT INTO {_VERSION_TABLE} VALUES ({VERSION});
CREATE TABLE volumes (
  volume_id TEXT PRIMARY KEY, revision BIGINT NOT NULL, record TEXT NOT NULL, wrapped_secret BYTEA,
  owner TEXT, mac BYTEA NOT NULL);
CREATE TABLE headers (volume_id TEXT PRIMARY KEY, wrapped BYTEA NOT NULL);
CREATE TABLE resources (path TEXT PRIMARY KEY, wrapped BYTEA NOT NULL);
CREATE TABLE key_check (wrapped BYTEA NOT NULL);
CREATE TABLE epoch (id TEXT NOT NULL);
INSERT INTO epoch VALUES (replace(gen_random_uuid()::text, '-', ''));
CREATE TABLE signs (volume_id TEXT PRIMARY KEY, lease TEXT NOT NULL, sign TEXT NOT NULL);
CREATE TABLE audit (
  seq BIGINT PRIMARY KEY, time_unix BIGINT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
  subject TEXT NOT NULL, detail TEXT NOT NULL, revision BIGINT, previous TEXT NOT NULL, digest TEXT NOT NULL,
  signature BYTEA NOT NULL);
CREATE INDEX audit_of_volumes ON audit (subject, revision) WHERE revision IS NOT NULL;
CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql
  AS $$BEGIN RAISE EXCEPTION 'the audit log is append-only'; END$$;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON audit EXECUTE FUNCTION audit_is_append_only();
"""  # noqa: S608 names of our own


def present(rows: Rows) -> set[str]:
    """Which of the register's tables are there."""
    found = rows.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
    return {name for (name,) in found} & set(_TABLES)


def missing(rows: Rows) -> list[str]:
    """Which of them are not, in the order in which they are made."""
    found = present(rows)
    return [name for name in _TABLES if name not in found]


def version(rows: Rows) -> int:
    """The version that the tables say they have."""
    return int(rows.execute(f"SELECT version FROM {_VERSION_TABLE}").fetchone()[0])  # noqa: S608


def make(rows: Rows) -> None:
    """An empty register, inside the caller's transaction."""
    rows.execute(_EMPTY)


def remove(rows: Rows) -> None:
    """The tables that are there go, with everything in them, inside the caller's transaction."""
    for table in sorted(present(rows)):
        rows.execute(f"DROP TABLE {table}")
