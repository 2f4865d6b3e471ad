"""Storing and destroying the secrets that guests read as `kbs:///REPOSITORY/TYPE/TAG`."""

import sys
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from csi.broker.audit import OPERATOR, Event
from csi.broker.directory import BrokerDirectory
from csi.broker.verbs.common import read
from csi.core.errors import InvalidInput
from csi.core.secret import Secret
from csi.kbs import messages as kbs


def put(arguments: Namespace) -> int:
    """Store a resource."""
    path = kbs.ResourcePath.parse(arguments.path)
    content = sys.stdin.buffer.read(kbs.BODY_LIMIT_BYTES + 1) if arguments.file == "-" else read(Path(arguments.file))
    if len(content) > kbs.BODY_LIMIT_BYTES:
        raise InvalidInput(str(path), f"a resource has at most {kbs.BODY_LIMIT_BYTES} bytes")
    directory = BrokerDirectory(arguments.dir)
    event = Event(actor=OPERATOR, action="resource-stored", subject=str(path))
    with closing(directory.open_store()) as store:
        wrapped = directory.open_vault(store).wrap(Secret(content), "resource", str(path))
        store.put_resource(str(path), wrapped, event)
    print(f"stored {len(content)} bytes as {path.uri}")
    return 0


def delete(arguments: Namespace) -> int:
    """Destroy a resource."""
    path = kbs.ResourcePath.parse(arguments.path)
    event = Event(actor=OPERATOR, action="resource-deleted", subject=str(path))
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        store.delete_resource(str(path), event)
    print(f"destroyed {path.uri}")
    return 0
