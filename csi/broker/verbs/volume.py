"""Looking at the register, and the operator's changes of it."""

import json
import os
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing

import msgspec

from csi.broker import rules as register
from csi.broker import volumes
from csi.broker.audit import OPERATOR, Event
from csi.broker.directory import BrokerDirectory
from csi.broker.verbs.common import as_json
from csi.core.errors import Refused
from csi.core.sealed import Profile
from csi.kbs import volumes_api
from csi.kbs.register import VolumeRecord


def list_all(arguments: Namespace) -> int:
    """One line a volume."""
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        records, epoch = store.volumes(), store.epoch()
    if arguments.json:
        for record in records:
            print(as_json({**msgspec.to_builtins(record), "epoch": epoch}))
        return 0
    rows = [("VOLUME", "STATE", "PROFILE", "GENERATION", "REVISION")]
    rows += [(item.volume_id, item.state, item.profile, str(item.generation), str(item.revision)) for item in records]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"register epoch {epoch}")
    return 0


def show(arguments: Namespace) -> int:
    """A record, readable and as JSON at once."""
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        record, epoch = store.volume(arguments.id), store.epoch()
    print(json.dumps({**msgspec.to_builtins(record), "epoch": epoch}, indent=2))
    return 0


def allocate(arguments: Namespace) -> int:
    """Make a record and its secret before any guest asks."""
    volumes_api.check_volume_id(arguments.id)
    directory, profile = BrokerDirectory(arguments.dir), Profile(arguments.profile)
    event = Event(actor=OPERATOR, action="allocated", subject=arguments.id, detail=f"profile={profile}")
    with closing(directory.open_store()) as store:
        record, wrapped = volumes.new_volume(directory.open_vault(os.environ, store), arguments.id, profile)
        found = store.allocate(record, wrapped, event)
    if found is not None and found != record:
        raise Refused(
            f"volume {found.volume_id} exists already: it is {found.state}, profile {found.profile}, revision "
            f"{found.revision}. It stays as it is; a new volume needs another id"
        )
    print(f"volume {record.volume_id} is {record.state}{'' if found is None else ' already'}, profile {record.profile}")
    return 0


def reset(arguments: Namespace) -> int:
    """End a formatting that nobody will finish."""
    return _operate(arguments, "reset", register.reset)


def retire(arguments: Namespace) -> int:
    """Stop the release of a secret."""
    return _operate(arguments, "retired", register.retire)


def reinstate(arguments: Namespace) -> int:
    """Release a retired volume's secret again."""
    return _operate(arguments, "reinstated", register.reinstate)


def shred(arguments: Namespace) -> int:
    """Destroy a secret."""
    if not arguments.yes:
        raise Refused(f"shredding destroys the data of volume {arguments.id} for ever; if that is meant, add --yes")
    return _operate(arguments, "shredded", register.shred, destroy_secret=True)


def _operate(
    arguments: Namespace, action: str, rule: Callable[[VolumeRecord], VolumeRecord], *, destroy_secret: bool = False
) -> int:
    event = Event(actor=OPERATOR, action=action, subject=arguments.id)
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        record = store.change(arguments.id, rule, event, destroy_secret=destroy_secret)
    print(f"volume {record.volume_id} is {record.state}")
    return 0
