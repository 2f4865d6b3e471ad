"""Another master key: everything that the old one wraps or seals is wrapped and sealed by a new one, in one transaction.

The new key is in a file before the transaction, and takes the old one's name after it. Killed at any moment the command is
repeated: the register itself says which of the two keys it is under. Until then no other command opens the register.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from csi.broker import audit, turns
from csi.broker.audit import OPERATOR, Event
from csi.broker.database import Rows
from csi.broker.directory import KEY_CHECK, BrokerDirectory
from csi.broker.rows import stored_of
from csi.broker.seals import Row, Seals
from csi.broker.vault import MASTER_KEY_VARIABLE, Vault
from csi.broker.volumes import header_purpose, secret_purpose
from csi.core.errors import Refused, SealedLocalError
from csi.core.files import flush_directory, write_atomic
from csi.core.secret import Secret

_KEY_BYTES, _MODE = 32, 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """How many secrets were wrapped anew (0 where an earlier call had done it), and where the old key is."""

    secrets: int
    kept: Path


def rotate(directory: BrokerDirectory, environment: Mapping[str, str]) -> Rotated:
    """Go over to a new master key. Raises `Busy` while anything uses the register; nothing has changed then."""
    if MASTER_KEY_VARIABLE in environment:
        raise Refused(f"the master key comes from {MASTER_KEY_VARIABLE}, where this command can't put another")
    place = turns.alone(directory.root)
    try:
        with _transaction(directory) as rows:
            old, new = _keys(directory, environment)
            count = 0 if _is_under(rows, new.vault) else _rewrap_or_not_at_all(directory, rows, old, new)
        return Rotated(secrets=count, kept=_put_in_force(directory))
    finally:
        os.close(place)


@contextmanager
def _transaction(directory: BrokerDirectory) -> Iterator[Rows]:
    conninfo = directory.load_conninfo()
    if conninfo is None:
        with closing(directory.open_database()) as database, database.changing("master key") as rows:
            yield rows
        return
    from csi.broker.postgres import sole

    with sole(conninfo) as alone, alone.changing() as rows:
        yield rows


def _keys(directory: BrokerDirectory, environment: Mapping[str, str]) -> tuple[Seals, Seals]:
    """The key in force, and the one to come, which is made unless an earlier call has."""
    coming = directory.master_key_file(environment, directory.next_master_key)
    if not coming.path.exists():
        text = coming.text(Secret(os.urandom(_KEY_BYTES)))
        write_atomic(coming.path, text, mode=_MODE, temporary=coming.path.with_name(f".{coming.path.name}.new"))
    new = directory.seals_of(coming.load())
    return directory.seals(environment), new


def _is_under(rows: Rows, vault: Vault) -> bool:
    row = rows.execute("SELECT wrapped FROM key_check").fetchone()
    try:
        vault.unwrap(bytes(row[0]) if row else b"", *KEY_CHECK)
    except Refused:
        return False
    return True


def _rewrap_or_not_at_all(directory: BrokerDirectory, rows: Rows, old: Seals, new: Seals) -> int:
    try:
        return _rewrap(rows, old, new)
    except SealedLocalError:
        # Nothing is stored under it: the transaction does not commit. Left there, it would keep brokers from starting.
        directory.next_master_key.unlink()
        raise


def _rewrap(rows: Rows, old: Seals, new: Seals) -> int:
    if not _is_under(rows, old.vault):
        raise Refused("the register was written with another master key than the one in master.key; put that back")

    def again(wrapped: bytes, *purpose: str) -> bytes:
        return new.vault.wrap(old.vault.unwrap(wrapped, *purpose), *purpose)

    headers = dict(rows.execute("SELECT volume_id, wrapped FROM headers").fetchall())
    resources = rows.execute("SELECT path, wrapped FROM resources").fetchall()
    volumes = rows.execute("SELECT volume_id, revision, record, wrapped_secret, owner, mac FROM volumes").fetchall()
    for *members, mac in volumes:
        row = Row(**dict(zip(Row.__slots__, members, strict=True)))
        old.check_row(row, mac)
        record = stored_of(row).record
        if row.wrapped_secret is not None:
            row = replace(row, wrapped_secret=again(row.wrapped_secret, *secret_purpose(record)))
        statement = "UPDATE volumes SET wrapped_secret = ?, mac = ? WHERE volume_id = ?"
        rows.execute(statement, (row.wrapped_secret, new.of_row(row), row.volume_id))
        if (header := headers.pop(row.volume_id, None)) is not None:
            wrapped = again(header, *header_purpose(row.volume_id, record.header_sha256 or ""))
            rows.execute("UPDATE headers SET wrapped = ? WHERE volume_id = ?", (wrapped, row.volume_id))
    if headers:
        raise Refused(f"the register has a header of {min(headers)}, and no such volume: look into `audit --verify`")
    for path, wrapped in resources:
        rows.execute("UPDATE resources SET wrapped = ? WHERE path = ?", (again(wrapped, "resource", path), path))
    rows.execute("UPDATE key_check SET wrapped = ?", (new.vault.wrap(Secret(b""), *KEY_CHECK),))
    detail = f"volumes={len(volumes)} resources={len(resources)}"
    event = Event(actor=OPERATOR, action="master-key-rotated", subject="master key", detail=detail)
    audit.append(rows, event, int(time.time()), new)
    return len(volumes) + len(resources)


def _put_in_force(directory: BrokerDirectory) -> Path:
    """The old key gets a second name first: backups of before are under it, and there is a master.key at every moment."""
    kept = _second_name(directory.master_key)
    if kept is None:
        kept = directory.root / f"master.key.replaced-{time.time_ns()}"
        kept.hardlink_to(directory.master_key)
        flush_directory(directory.root)
    directory.next_master_key.replace(directory.master_key)
    flush_directory(directory.root)
    return kept


def _second_name(path: Path) -> Path | None:
    """What an earlier call, killed after it, has made."""
    return next((name for name in path.parent.glob(f"{path.name}.replaced-*") if name.samefile(path)), None)
