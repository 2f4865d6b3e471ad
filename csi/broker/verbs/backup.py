"""Backing the register up, and putting a backup in its place."""

import os
from argparse import Namespace
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from csi.broker import backup as copies
from csi.broker.audit import OPERATOR, Entry, Event
from csi.broker.directory import BrokerDirectory
from csi.broker.verbs.common import read
from csi.kbs import strict_json


def backup(arguments: Namespace) -> int:
    """Write a checked copy of the database."""
    target = Path(arguments.file)
    directory = BrokerDirectory(arguments.dir)
    with closing(directory.open_store()) as store:
        epoch = store.epoch()
        event = Event(actor=OPERATOR, action="backed-up", subject=target.name, detail=f"epoch={epoch}")
        copies.back_up(store, target, directory.seals(os.environ), event)
    print(f"the register of epoch {epoch} is in {target}, checked; keep master.key elsewhere: it is not in it")
    return 0


def restore(arguments: Namespace) -> int:
    """Put a backup in the register's place; returns 0 even when volumes are held back, for that is as it should be."""
    directory = BrokerDirectory(arguments.dir)
    log = None if arguments.audit_log is None else _entries(Path(arguments.audit_log))
    done = copies.restore(directory, Path(arguments.file), os.environ, log)
    taken = datetime.fromtimestamp(done.backed_up_unix, UTC).isoformat()
    print(f"restored the register as it was at {taken}; its epoch is now {done.epoch}")
    if done.replaced is not None:
        print(f"the replaced register is kept in {done.replaced}")
    for line in done.held:
        print(line)
    if done.unknown is not None:
        print(
            f"\nwhat happened since the backup is NOT known: {done.unknown}. Guests refuse volumes that were opened since. "
            'Ids made since count as unused: set allocate = "never" in the policy before guests are let in. A saved audit '
            "log can tell more: --audit-log FILE"
        )
    elif not done.held:
        print("no volume changed since the backup")
    return 0


def _entries(path: Path) -> list[Entry]:
    lines = read(path).splitlines()
    return [strict_json.decode(line, Entry, f"{path}: line {number}") for number, line in enumerate(lines, 1)]
