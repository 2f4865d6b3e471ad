"""`broker collateral`: what the verifiers need beside the evidence, given by the operator."""

import datetime as dt
from argparse import Namespace

from csi.broker.collateral import in_words
from csi.broker.directory import BrokerDirectory
from csi.broker.verbs.common import collateral_folder, read


def import_file(arguments: Namespace) -> int:
    """Verify a file and take it into the broker's directory. A serving broker uses it from then on."""
    folder, now = collateral_folder(BrokerDirectory(arguments.dir), arguments), dt.datetime.now(dt.UTC)
    for entry in folder.add(read(arguments.file), now):
        print(f"imported {entry.path.name}: {entry.what}; it {in_words(entry.expires, now)}")
    return 0


def list_all(arguments: Namespace) -> int:
    """Print what is there and how long it is good; 1 when something has ended."""
    now = dt.datetime.now(dt.UTC)
    entries = collateral_folder(BrokerDirectory(arguments.dir), arguments).entries()
    for entry in entries:
        print(f"{entry.path.name}: {entry.what}; it {in_words(entry.expires, now)}")
    if not entries:
        print("none: TDX guests and SEV-SNP guests with a VLEK are refused")
    return 1 if any(entry.expires <= now for entry in entries) else 0
