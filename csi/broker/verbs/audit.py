"""Reading and checking the audit log."""

from argparse import Namespace
from contextlib import closing

from csi.broker.directory import BrokerDirectory
from csi.broker.verbs.common import as_json


def audit(arguments: Namespace) -> int:
    """Print or check the audit log."""
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        if arguments.verify or arguments.head:
            store.check_integrity()
            count, head = store.verify_audit(arguments.head)
            print(f"{count} entries, the chain is whole; newest digest: {head}")
            print(f"register epoch {store.epoch()}")
            return 0
        for entry in store.audit_entries():
            print(as_json(entry))
    return 0
