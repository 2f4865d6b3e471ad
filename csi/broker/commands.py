"""What the commands of `sealed-local broker` do. They may run beside a serving broker: the database takes turns."""

import json
import os
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from csi.broker import rules as register
from csi.broker import volumes
from csi.broker.audit import Event
from csi.broker.directory import BrokerDirectory, initialise, missing_hosts
from csi.core import log, process
from csi.core.errors import InvalidInput, NotFound, Refused
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.kbs import init_data as init_data_text
from csi.kbs import messages as kbs
from csi.kbs import volumes_api
from csi.kbs.register import VolumeRecord

_OPERATOR = "operator"
_STACK_BYTES = 1024 * 1024
_DEFAULT_HOSTS = ["localhost", "127.0.0.1"]


def init(arguments: Namespace) -> int:
    """Make a directory, say what is in it and what comes next."""
    directory = BrokerDirectory(arguments.dir)
    hosts = arguments.host or _DEFAULT_HOSTS
    made = initialise(directory, hosts, os.environ)
    for path in made.written:
        print(f"made  {path}")
    for path in made.kept:
        print(f"kept  {path}")
    if arguments.host and (uncovered := missing_hosts(directory, hosts)):
        pem, key = directory.certificate("server"), directory.key("server")
        print(
            f"\nthe certificate does not cover {', '.join(uncovered)}; to make a new one: "
            f"rm {pem} {key}, then repeat this command with every --host",
            file=sys.stderr,
        )
        return 1
    print(f"""
guests trust this authority: {directory.certificate("ca")}
the policy denies everything until you allow something in {directory.policy}
keep a copy of {directory.master_key} elsewhere: without it every secret in the database is lost

next: sealed-local broker serve {directory.root}""")
    return 0


def serve(arguments: Namespace) -> int:
    """Run the broker."""
    from csi.broker import server  # An HTTP server is not worth its import time to the other commands.

    directory, address = BrokerDirectory(arguments.dir), server.parse_address(arguments.listen)
    log.set_up(arguments.log_level)
    # Before any key is in memory. Where memory is locked, every stack takes its whole size; 8 MiB each would be 300 in all.
    threading.stack_size(_STACK_BYTES)
    process.harden()
    server.serve(directory, directory.load_broker(os.environ), address)
    return 0


def volume_list(arguments: Namespace) -> int:
    """One line a volume."""
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        records = store.volumes()
    if arguments.json:
        for record in records:
            print(_json(record))
        return 0
    rows = [("VOLUME", "STATE", "PROFILE", "GENERATION", "REVISION")]
    rows += [(item.volume_id, item.state, item.profile, str(item.generation), str(item.revision)) for item in records]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def volume_show(arguments: Namespace) -> int:
    """A record, readable and as JSON at once."""
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        record = store.volume(arguments.id)
    print(json.dumps(msgspec.to_builtins(record), indent=2))
    return 0


def volume_allocate(arguments: Namespace) -> int:
    """Make a record and its secret before any guest asks."""
    volumes_api.check_volume_id(arguments.id)
    directory, profile = BrokerDirectory(arguments.dir), Profile(arguments.profile)
    event = Event(actor=_OPERATOR, action="allocated", subject=arguments.id, detail=f"profile={profile}")
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


def volume_reset(arguments: Namespace) -> int:
    """End a formatting that nobody will finish."""
    return _operate(arguments, "reset", register.reset)


def volume_retire(arguments: Namespace) -> int:
    """Stop the release of a secret."""
    return _operate(arguments, "retired", register.retire)


def volume_reinstate(arguments: Namespace) -> int:
    """Release a retired volume's secret again."""
    return _operate(arguments, "reinstated", register.reinstate)


def volume_shred(arguments: Namespace) -> int:
    """Destroy a secret."""
    if not arguments.yes:
        raise Refused(f"shredding destroys the data of volume {arguments.id} for ever; if that is meant, add --yes")
    return _operate(arguments, "shredded", register.shred, destroy_secret=True)


def resource_put(arguments: Namespace) -> int:
    """Store a resource."""
    path = kbs.ResourcePath.parse(arguments.path)
    content = sys.stdin.buffer.read() if arguments.file == "-" else _read(Path(arguments.file))
    directory = BrokerDirectory(arguments.dir)
    event = Event(actor=_OPERATOR, action="resource-stored", subject=str(path))
    with closing(directory.open_store()) as store:
        wrapped = directory.open_vault(os.environ, store).wrap(Secret(content), "resource", str(path))
        store.put_resource(str(path), wrapped, event)
    print(f"stored {len(content)} bytes as {path.uri}")
    return 0


def resource_delete(arguments: Namespace) -> int:
    """Destroy a resource."""
    path = kbs.ResourcePath.parse(arguments.path)
    event = Event(actor=_OPERATOR, action="resource-deleted", subject=str(path))
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        store.delete_resource(str(path), event)
    print(f"destroyed {path.uri}")
    return 0


def audit(arguments: Namespace) -> int:
    """Print or check the audit log."""
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        if arguments.verify or arguments.head:
            count, head = store.verify_audit(arguments.head)
            print(f"{count} entries, the chain is whole; newest digest: {head}")
            return 0
        for entry in store.audit_entries():
            print(_json(entry))
    return 0


def init_data(arguments: Namespace) -> int:
    """Print a digest as the policy wants it."""
    try:
        text = _read(arguments.file).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(str(arguments.file), "not UTF-8") from error
    init_data_text.check_size(text, str(arguments.file))
    print(init_data_text.parse(text, str(arguments.file)).digest)
    return 0


def policy(arguments: Namespace) -> int:
    """Check the policy file."""
    loaded = BrokerDirectory(arguments.dir).load_policy()
    print(f"the policy is valid; sample TEE: {'ALLOWED, development only' if loaded.allow_sample else 'denied'}")
    for work in loaded.workloads:
        print(f"workload {work.name}: tee {', '.join(work.tee)}; init-data {', '.join(work.init_data)}")
        print(f"  volumes {', '.join(work.volumes) or 'none'}; resources {', '.join(work.resources) or 'none'}")
    if not loaded.workloads:
        print("no [[workload]]: nothing is released to anyone")
    return 0


def _operate(
    arguments: Namespace, action: str, rule: Callable[[VolumeRecord], VolumeRecord], *, destroy_secret: bool = False
) -> int:
    event = Event(actor=_OPERATOR, action=action, subject=arguments.id)
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        record = store.change(arguments.id, rule, event, destroy_secret=destroy_secret)
    print(f"volume {record.volume_id} is {record.state}")
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise InvalidInput(str(path), "is a directory") from error


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
