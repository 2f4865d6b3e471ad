"""A consistent copy of the register into one SQLite file, wherever it lies, and the way back. Both are checked before
anything takes its name.

A restore puts a new file in the place of the register, moves the replaced one aside with its write-ahead log, gives the
register a new epoch, and holds back every volume that changed since, as far as the replaced register or a saved audit log
can tell. Killed at any moment it is repeated.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, assert_never

from csi.broker import rules, since, turns
from csi.broker import sqlite_schema as schema
from csi.broker.audit import OPERATOR, Entry, Event
from csi.broker.directory import BrokerDirectory
from csi.broker.rows import StoredVolume
from csi.broker.seals import Seals
from csi.broker.since import Finding, What
from csi.broker.sqlite import Sqlite
from csi.broker.store import Store
from csi.core.errors import NotFound, Refused, SealedLocalError
from csi.core.files import flush_directory
from csi.kbs.register import VolumeRecord, VolumeState

if TYPE_CHECKING:
    from csi.broker.postgres import Sole

_MODE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did. `held` are lines for a person: a volume and what to do about it."""

    epoch: str
    backed_up_unix: int
    replaced: Path | None
    held: tuple[str, ...]
    unknown: str | None
    """Why nothing, or not everything, is known of what happened since; None when all is known."""


def back_up(store: Store, target: Path, seals: Seals, event: Event) -> None:
    """Write a checked copy to a new file. The entry of the audit log is inside the copy: what comes later is after it."""
    if target.exists():
        raise Refused(f"{target} exists already; a backup never replaces a file")
    store.note(event)
    with _new_file(target) as made:
        store.copy_to(made)
        with closing(Store(Sqlite(made), seals)) as copy:
            copy.check_integrity()
            copy.volumes()
            copy.verify_audit()
        _put(made, target)


def restore(
    directory: BrokerDirectory, backup: Path, environment: Mapping[str, str], log: Iterable[Entry] | None = None
) -> Restored:
    """Put a backup in the place of the register. `log` tells what happened since where the replaced register can't.

    Raises `Busy` while a broker or a command uses the directory, `Refused` for a file that isn't a whole backup of this
    broker; then nothing was changed.
    """
    place = turns.alone(directory.root)
    try:
        lease_seconds = directory.load_policy().lease_seconds
        with _new_file(directory.database) as made, _present(directory) as present:
            _fetch(backup, made)
            seals = directory.seals(environment)
            with closing(Store(Sqlite(made), seals)) as store:
                directory.open_vault(store)
                store.verify_audit()
                last = store.audit_entries()[-1:]
                held, unknown = _look_back(store, present.file, seals, log)
                _begin_anew(store, lease_seconds)
                event = Event(
                    actor=OPERATOR, action="restored", subject=backup.name, detail=f"was epoch {store.epoch()}"
                )
                epoch = store.renew_epoch(event)
            replaced = present.replace(made)
    finally:
        os.close(place)
    backed_up = last[0].time_unix if last else 0
    return Restored(epoch=epoch, backed_up_unix=backed_up, replaced=replaced, held=held, unknown=unknown)


class _Present(Protocol):
    """The register that a restore replaces."""

    @property
    def file(self) -> Path:
        """All of it in SQLite; no file where there is none."""

    def replace(self, made: Path) -> Path | None:
        """Put `made` in its place; returns where the replaced one is kept."""


@dataclass(frozen=True, slots=True)
class _InFile:
    file: Path

    def replace(self, made: Path) -> Path | None:
        """See `_Present`."""
        replaced = _set_aside(self.file)
        _put(made, self.file)
        return replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnServer:
    """Its copy is made before anything is changed. Where a register moves to a server, the file of before is the copy."""

    sole: "Sole"
    file: Path
    kept: Path | None
    """The name that the copy gets; None where there was nothing to copy."""
    database: Path

    def replace(self, made: Path) -> Path | None:
        """See `_Present`."""
        if self.kept is not None:
            _put(self.file, self.kept)
        self.sole.replace(made)
        return _set_aside(self.database) or self.kept


@contextmanager
def _present(directory: BrokerDirectory) -> Iterator[_Present]:
    conninfo, database = directory.load_conninfo(), directory.database
    if conninfo is None:
        yield _InFile(database)
        return
    from csi.broker.postgres import sole

    kept = database.with_name(f"{database.name}.replaced-{time.time_ns()}")
    with sole(conninfo) as alone, _new_file(kept) as copy:
        if alone.copy_to(copy):
            yield _OnServer(sole=alone, file=copy, kept=kept, database=database)
        else:
            yield _OnServer(sole=alone, file=database, kept=None, database=database)


def _look_back(
    store: Store, database: Path, seals: Seals, log: Iterable[Entry] | None
) -> tuple[tuple[str, ...], str | None]:
    """Hold back what changed since; returns what to tell, and why something may be missing in it."""
    try:
        with closing(Store(Sqlite(database), seals)) as replaced:
            replaced.check_integrity()
            findings = since.compare(store.all_stored(), replaced.all_stored())
            return _hold_back(store, findings, replaced), None
    except FileNotFoundError:
        why = f"there is no replaced register at {database}"
    except SealedLocalError as error:
        why = f"the replaced register can't be read: {error}"
    if log is None:
        return _hold_back_unformatted(store), why
    return _hold_back_by_log(store, log), None


def _begin_anew(store: Store, lease_seconds: int) -> None:
    """What guests had begun at the backup counts no more, see `rules.restored`."""
    rule = partial(rules.restored, lease_seconds=lease_seconds)
    for record in store.volumes():
        event = Event(
            actor=OPERATOR, action="begun-anew", subject=record.volume_id, detail="what was announced is void"
        )
        store.change(record.volume_id, rule, event)


def _by_id(store: Store) -> dict[str, VolumeRecord]:
    return {record.volume_id: record for record in store.volumes()}


def _fetch(backup: Path, made: Path) -> None:
    """Copy a backup to `made`, as it is in its one file. Raises `Refused` for what is not a backup."""
    if not backup.is_file():
        raise NotFound(f"{backup} is not a file")
    log = backup.with_name(f"{backup.name}-wal")
    if log.exists() and log.stat().st_size:
        raise Refused(
            f"{log} lies beside {backup}: this is a copy of a database in use, not a backup. Take the newest file that "
            "`sealed-local broker backup` wrote"
        )
    try:
        # Immutable: nothing beside the file is read, and nothing is written there.
        with (
            closing(sqlite3.connect(f"{backup.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as source,
            closing(sqlite3.connect(made)) as copy,
        ):
            source.backup(copy)
            schema.check_integrity(copy, backup)
    except schema.ERRORS as error:
        raise schema.damaged(backup, str(error)) from error


def _hold_back(store: Store, findings: Iterable[Finding], replaced: Store) -> tuple[str, ...]:
    """Bring each volume that changed since into a state in which no guest can harm it; returns what to tell."""
    lines = []
    for finding in findings:
        event = Event(actor=OPERATOR, action="held", subject=finding.volume_id, detail=finding.what)
        held = _held(finding, store, replaced)
        store.adopt(held, event, _header(finding, store, replaced))
        lines.append(f"{finding.volume_id}: {finding.advice()}")
    return tuple(lines)


def _hold_back_by_log(store: Store, entries: Iterable[Entry]) -> tuple[str, ...]:
    """The same where only an audit log can tell."""
    last = max((entry.seq for entry in store.audit_entries()), default=0)
    known = _by_id(store)
    actions: dict[str, str] = {}
    for entry in entries:
        if entry.seq > last and entry.event.action in since.CHANGES:
            actions[entry.event.subject] = entry.event.action
    lines = []
    for volume_id, action in sorted(actions.items()):
        lines.append(f"{volume_id}: {since.advice_by_log(volume_id, action, known=volume_id in known)}")
        if volume_id in known and known[volume_id].state is not VolumeState.SHREDDED:
            event = Event(actor=OPERATOR, action="held", subject=volume_id, detail=f"the audit log says {action}")
            store.change(volume_id, rules.retire, event)
    return tuple(lines)


def _hold_back_unformatted(store: Store) -> tuple[str, ...]:
    """Where nothing can tell, what could be formatted is held: it may have been formatted since, and hold data."""
    lines = []
    for record in store.volumes():
        if record.state in (VolumeState.ALLOCATED, VolumeState.FORMATTING):
            event = Event(
                actor=OPERATOR, action="held", subject=record.volume_id, detail="it may have been formatted since"
            )
            store.change(record.volume_id, rules.retire, event)
            lines.append(
                f"{record.volume_id}: not formatted at the backup, perhaps since; held. Only if it holds no data: "
                f"sealed-local broker volume reinstate {record.volume_id}"
            )
    return tuple(lines)


def _set_aside(database: Path) -> Path | None:
    """Give the replaced database and its log other names; None when there is none.

    The database goes first: without its log it would be an older register, which must never be taken for the present one.
    """
    name = f"{database.name}.replaced-{time.time_ns()}"
    moved = None
    for ending in ("", "-wal"):
        found = database.with_name(f"{database.name}{ending}")
        if found.exists():
            moved = database.with_name(name)
            found.rename(database.with_name(f"{name}{ending}"))
            flush_directory(database.parent)
    # An index of the log, made anew by whoever opens the database.
    database.with_name(f"{database.name}-shm").unlink(missing_ok=True)
    return moved


def _held(finding: Finding, store: Store, replaced: Store) -> StoredVolume:
    match finding.what:
        case What.MADE | What.FORMATTED:
            newer = replaced.stored(finding.volume_id)
            return replace(newer, record=_retired(newer.record))
        case What.SHREDDED:
            older = store.stored(finding.volume_id)
            return replace(older, record=rules.shred(_retired(older.record)), wrapped_secret=None)
        case What.OPENED | What.CHANGED:
            older = store.stored(finding.volume_id)
            # Whose it was before a hand-over, it must not be again.
            return replace(older, record=_retired(older.record), owner=replaced.stored(finding.volume_id).owner)
        case _:
            assert_never(finding.what)


def _header(finding: Finding, store: Store, replaced: Store) -> bytes | None:
    """The wrapped header that belongs to what is held."""
    match finding.what:
        case What.MADE | What.FORMATTED:
            return replaced.header(finding.volume_id)
        case What.SHREDDED:
            return None
        case What.OPENED | What.CHANGED:
            return store.header(finding.volume_id)
        case _:
            assert_never(finding.what)


def _retired(record: VolumeRecord) -> VolumeRecord:
    return record if record.state is VolumeState.SHREDDED else rules.retire(record)


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A file beside `target` that is gone afterwards unless it got the name."""
    path = target.with_name(f".{target.name}.new")
    _clear(path)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _MODE))
    try:
        yield path
    finally:
        _clear(path)


def _clear(path: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        path.with_name(f"{path.name}{ending}").unlink(missing_ok=True)


def _put(made: Path, target: Path) -> None:
    with made.open("rb") as file:
        os.fsync(file.fileno())
    made.rename(target)
    flush_directory(target.parent)
