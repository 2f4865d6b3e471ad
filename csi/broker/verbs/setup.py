"""Making a broker, running it, and checking what its operator writes."""

import logging
import os
import sys
import threading
from argparse import Namespace

from csi.broker import rotation
from csi.broker.directory import BrokerDirectory, initialise, missing_hosts
from csi.broker.release import TdxImage
from csi.broker.verbs.common import collateral_folder, read
from csi.broker.verifiers.known import known_verifiers
from csi.core import log, process
from csi.core.errors import InvalidInput
from csi.core.secret import Secret
from csi.kbs import init_data as init_data_text

_log = logging.getLogger(__name__)
_STACK_BYTES = 1024 * 1024
_DEFAULT_HOSTS = ["localhost", "127.0.0.1"]


def init(arguments: Namespace) -> int:
    """Make a directory, say what is in it and what comes next."""
    directory = BrokerDirectory(arguments.dir)
    hosts = arguments.host or _DEFAULT_HOSTS
    made = initialise(directory, hosts, os.environ, _conninfo(arguments.database))
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


def _conninfo(given: str | None) -> Secret | None:
    if given is None:
        return None
    return Secret((sys.stdin.readline() if given == "-" else given).strip().encode())


def rotate(arguments: Namespace) -> int:
    """Put another master key in the place of the present one."""
    directory = BrokerDirectory(arguments.dir)
    done = rotation.rotate(directory, os.environ)
    print(f"a new master key is in force; {done.secrets} secrets were wrapped anew")
    print(f"the old one is in {done.kept}: backups of before need it; destroy it with the last of them")
    print(f"make a backup now, and keep a copy of {directory.master_key} elsewhere")
    return 0


def serve(arguments: Namespace) -> int:
    """Run the broker."""
    from csi.broker import server  # An HTTP server is not worth its import time to the other commands.

    directory, address = BrokerDirectory(arguments.dir), server.parse_address(arguments.listen)
    log.set_up(arguments.log_level)
    # Before any key is in memory. Where memory is locked, every stack takes its whole size; 8 MiB each would be 300 in all.
    threading.stack_size(_STACK_BYTES)
    process.harden()
    folder = collateral_folder(directory, arguments)
    broker = directory.load_broker(os.environ)
    broker.verifiers = known_verifiers(folder)
    for tee, vendor, test in (("SEV-SNP", "AMD", folder.roots.test), ("TDX", "Intel", folder.intel.test)):
        if test:
            _log.warning(
                f"DEVELOPMENT ONLY: {tee} evidence is verified against a test authority instead of {vendor}'s. Whoever has "
                "its key can claim to be any guest; its evidence is good only while the policy says [tee.sample] "
                "allow = true"
            )
    server.serve(directory, broker, address)
    return 0


def init_data(arguments: Namespace) -> int:
    """Print a digest as the policy wants it."""
    try:
        text = read(arguments.file).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(str(arguments.file), "not UTF-8") from error
    init_data_text.check_size(text, str(arguments.file))
    print(init_data_text.parse(text, str(arguments.file)).digest)
    return 0


def policy(arguments: Namespace) -> int:
    """Check the policy file."""
    loaded = BrokerDirectory(arguments.dir).load_policy()
    print(f"the policy is valid; sample TEE: {'ALLOWED, development only' if loaded.allow_sample else 'denied'}")
    for image in loaded.images:
        if isinstance(image, TdxImage) and image.unmeasured is not None:
            print(f"image {image.name}: {image.unmeasured}")
    for work in loaded.workloads:
        print(f"workload {work.name}: tee {', '.join(work.tee)}; init-data {', '.join(work.init_data)}")
        print(f"  volumes {', '.join(work.volumes) or 'none'}; resources {', '.join(work.resources) or 'none'}")
    if not loaded.workloads:
        print("no [[workload]]: nothing is released to anyone")
    return 0
