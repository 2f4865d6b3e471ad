"""Command line of `sealed-local broker`: arguments in, exit status out. What each command does is in `verbs`.

Every option is declared here and nowhere else; the table in `docs/broker.md` is made from it."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from csi.broker.measure.snp import VCPU_TYPES
from csi.broker.verbs import audit, backup, collateral, measure, policy, resource, setup, volume
from csi.core.errors import SealedLocalError
from csi.core.sealed import Profile

DIRECTORY_VARIABLE = "SEALED_LOCAL_BROKER_DIR"
_TDX_AUTHORITY = (
    "a PEM certificate that stands in the place of Intel's root; the same option imports collateral below it"
)
_DEFAULT_DIRECTORY = "/var/lib/sealed-local-broker"

_DESCRIPTION = """\
The tenant's key broker: keeps the secret and the record of every sealed volume, and gives them to attested guests only.
It speaks the KBS protocol 0.4.0 of Confidential Containers. Run it where the tenant trusts the machine, never on the
nodes that carry the volumes.
"""

_EPILOG = """\
first steps:
  sealed-local broker init DIR --host broker.example.com     make keys, certificates, database, policy
  sealed-local broker init-data initdata.toml                the digest to allow in DIR/policy.toml
  sealed-local broker serve DIR                              run it
  sealed-local broker volume list --dir DIR                  what the register knows

environment:
  SEALED_LOCAL_BROKER_DIR          the directory, where --dir is not given
  SEALED_LOCAL_BROKER_MASTER_KEY   the master key (base64 of 32 bytes) instead of DIR/master.key
  SEALED_LOCAL_BROKER_KMS_PIN      the PIN of DIR/kms.toml's token, instead of its pin_file
"""


def main(argv: list[str]) -> int:
    """Run one command; returns its exit status."""
    arguments = parser().parse_args(argv)
    arguments.dir = getattr(arguments, "positional_dir", None) or arguments.dir
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except SealedLocalError as error:
        print(f"sealed-local broker: {error}", file=sys.stderr)
    except PermissionError as error:
        print(f"sealed-local broker: {error.filename}: no permission; run it as the broker's user", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """All commands and options, with their defaults and helps."""
    parser = argparse.ArgumentParser(
        prog="sealed-local broker",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # The option stands before or after the command; what was given nearest to the command wins.
    parser.set_defaults(dir=Path(os.environ.get(DIRECTORY_VARIABLE, _DEFAULT_DIRECTORY)))
    command = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_init(command)
    _add_serve(command)
    _add(
        command,
        "rotate",
        setup.rotate,
        "wrap everything by a new master key, with all brokers stopped",
        positional_dir=True,
    )
    _add_volume(command)
    _add_resource(command)
    _add_audit(command)
    _add_backup(command)
    _add_init_data(command)
    _add_collateral(command)
    _add_policy(command)
    _add_measure(command)
    return parser


# argparse has no public name for what add_subparsers() answers.
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


def _add(
    command: _Commands, name: str, run: Callable[[argparse.Namespace], int], text: str, *, positional_dir: bool = False
) -> argparse.ArgumentParser:
    parser = command.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    if positional_dir:
        # Not `dir`: left out, it would put its own default in the place of what --dir said.
        parser.add_argument("positional_dir", metavar="DIR", type=Path, nargs="?")
    parser.add_argument("--dir", metavar="DIR", type=Path, default=argparse.SUPPRESS, help="the broker's directory")
    return parser


def _add_init(command: _Commands) -> None:
    parser = _add(
        command, "init", setup.init, "make a broker's directory; what exists already is kept", positional_dir=True
    )
    parser.add_argument(
        "--database",
        metavar="CONNINFO",
        help="keep the register in this PostgreSQL database, for several brokers side by side: libpq's connection string; "
        "'-' reads it from standard input, as one with a password should be (default: a SQLite file in the directory)",
    )
    parser.add_argument(
        "--host",
        action="append",
        metavar="NAME",
        help="a host name or IP address that guests reach the broker by; may be repeated (default: localhost, 127.0.0.1)",
    )


def _add_serve(command: _Commands) -> None:
    parser = _add(command, "serve", setup.serve, "run the broker until SIGTERM", positional_dir=True)
    parser.add_argument(
        "--listen", metavar="HOST:PORT", default="0.0.0.0:8443", help="where guests reach it (default: %(default)s)"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least that is written to standard error (default: %(default)s)",
    )
    _add_test_authorities(parser)


def _add_test_authorities(parser: argparse.ArgumentParser) -> None:
    for tee, what in (("snp", "PEM certificates that stand in the place of AMD's roots"), ("tdx", _TDX_AUTHORITY)):
        parser.add_argument(f"--{tee}-test-authority", type=Path, metavar="FILE", help=f"DEVELOPMENT ONLY: {what}")


def _add_volume(command: _Commands) -> None:
    group = command.add_parser("volume", help="look at the register, and the operator's changes of it")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listing = _add(actions, "list", volume.list_all, "all volumes with their states")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    allocate = _add(
        actions, "allocate", volume.allocate, 'make a new volume\'s record and secret, for allocate = "never"'
    )
    allocate.add_argument("id", metavar="ID")
    allocate.add_argument(
        "--profile",
        choices=[str(profile) for profile in Profile if profile.is_sealed],
        default=str(Profile.XTS),
        help="how guests seal it; it never changes (default: %(default)s)",
    )
    allocate.add_argument(
        "--workload",
        metavar="NAME",
        help="the workload of the policy that it belongs to; left out, the first one that opens it",
    )
    _for_claim(allocate)
    hand_over = _add(actions, "hand-over", volume.hand_over, "give a volume to another owner; its guests start over")
    hand_over.add_argument("id", metavar="ID")
    hand_over.add_argument("--to", metavar="NAME", required=True, help="a workload of the policy")
    _for_claim(hand_over)
    _add_accept(actions)
    _add_end_lease(actions)
    for name, run, text in (
        ("show", volume.show, "everything that the register knows of a volume"),
        ("reset", volume.reset, "formatting → allocated: a guest died in its first format, let another try"),
        ("retire", volume.retire, "stop releasing a volume's secret; the secret is kept"),
        ("reinstate", volume.reinstate, "take a retirement back"),
    ):
        _add(actions, name, run, text).add_argument("id", metavar="ID")
    shred = _add(actions, "shred", volume.shred, "destroy a volume's secret: its data is lost for ever, everywhere")
    shred.add_argument("id", metavar="ID")
    shred.add_argument("--yes", action="store_true", help="needed: this can't be undone")


def _for_claim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", metavar="NAME", help="only for guests whose measured policy says this namespace")
    parser.add_argument("--claim", metavar="NAME", help="only for use as this claim of it")


def _add_accept(actions: _Commands) -> None:
    accept = _add(
        actions, "accept", volume.accept, "take the state that a disk shows for the volume's, after a restore or a loss"
    )
    accept.add_argument("id", metavar="ID")
    state = accept.add_mutually_exclusive_group(required=True)
    state.add_argument("--found", metavar="STATE", help="the disk's state, as a guest that refuses it prints it")
    state.add_argument(
        "--unread",
        action="store_true",
        help="no state record of the disk can be read; `sealed-local guest repair` then writes one",
    )
    accept.add_argument(
        "--reason", metavar="TEXT", required=True, help="why; it is kept in the record and the audit log"
    )
    accept.add_argument("--yes", action="store_true", help="needed, after a look at the two states that are printed")


def _add_end_lease(actions: _Commands) -> None:
    end = _add(
        actions, "end-lease", volume.end_lease, "let the next guest in at once, after one that is certainly dead"
    )
    end.add_argument("id", metavar="ID")
    end.add_argument("--reason", metavar="TEXT", required=True, help="why; it is kept in the audit log")
    end.add_argument("--yes", action="store_true", help="needed: two guests on one volume destroy it")


def _add_resource(command: _Commands) -> None:
    group = command.add_parser("resource", help="secrets that guests may read as kbs:///REPOSITORY/TYPE/TAG")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    put = _add(actions, "put", resource.put, "store a file's bytes, exactly as they are")
    put.add_argument("path", metavar="REPOSITORY/TYPE/TAG")
    put.add_argument("file", metavar="FILE", help="'-' reads standard input")
    delete = _add(actions, "delete", resource.delete, "destroy a resource")
    delete.add_argument("path", metavar="REPOSITORY/TYPE/TAG")


def _add_audit(command: _Commands) -> None:
    parser = _add(command, "audit", audit.audit, "print the audit log, one JSON object a line")
    parser.add_argument("--verify", action="store_true", help="check the chain of hashes instead of printing")
    parser.add_argument(
        "--head", metavar="DIGEST", help="with --verify: a digest noted earlier; the log must still hold its entry"
    )


def _add_backup(command: _Commands) -> None:
    kept = _add(command, "backup", backup.backup, "write a checked copy of the database while the broker runs")
    kept.add_argument("file", metavar="FILE", help="a new file; an existing one is never replaced")
    restore = _add(
        command,
        "restore",
        backup.restore,
        "put a backup in the place of the database, with a new register epoch; what changed since is held and listed",
    )
    restore.add_argument("file", metavar="FILE", help="what `backup` wrote; it is checked first and stays as it is")
    restore.add_argument(
        "--audit-log",
        metavar="FILE",
        help="saved output of `audit`: it tells what happened since where the replaced database can't be read",
    )


def _add_init_data(command: _Commands) -> None:
    parser = _add(command, "init-data", setup.init_data, "print the digest of an init-data file, for the policy")
    parser.add_argument("file", type=Path, metavar="FILE")


def _add_collateral(command: _Commands) -> None:
    group = command.add_parser("collateral", help="what verifying evidence needs beside it; nothing is ever fetched")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    imported = _add(actions, "import", collateral.import_file, "verify a file of Intel or AMD and keep it")
    imported.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="JSON: collateral of TDX platforms; PEM: AMD's chain for VLEK certificates; DER: AMD's revocation list",
    )
    listing = _add(actions, "list", collateral.list_all, "what is there and how long it is good")
    for parser in (imported, listing):
        _add_test_authorities(parser)


def _add_policy(command: _Commands) -> None:
    group = command.add_parser("policy", help="check the policy file, and hold evidence against it")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    _add(actions, "check", setup.policy, "check the policy file and say what it allows")
    explain = _add(actions, "explain", policy.explain, "say which rules of the policy given evidence keeps and breaks")
    learn = _add(actions, "learn", policy.learn, "print the reference set of given evidence, to be put into the policy")
    learn.add_argument("--name", required=True, metavar="NAME", help="what the image is called")
    for parser in (explain, learn):
        parser.add_argument(
            "evidence",
            type=Path,
            metavar="EVIDENCE",
            help="evidence as JSON, a whole attestation message, or a bare TDX quote",
        )
        parser.add_argument(
            "--init-data", type=Path, metavar="FILE", help="the init-data that the guest was started with"
        )
        parser.add_argument(
            "--at", metavar="TIME", help="verify as of this time, for example 2026-11-25T12:00:00Z (default: now)"
        )


def _add_measure(command: _Commands) -> None:
    group = command.add_parser(
        "measure", help="compute an image's reference set from the files that its guests are started with"
    )
    actions = group.add_subparsers(metavar="TEE", required=True)
    tdx = _add(actions, "tdx", measure.measure_tdx, "MRTD, RTMR1 and RTMR2, and RTMR0 of a given virtual machine")
    tdx.add_argument(
        "--memory", type=int, metavar="MIB", help="for RTMR0: the memory that QEMU is started with; with --acpi"
    )
    tdx.add_argument(
        "--acpi",
        type=Path,
        metavar="DIR",
        help="for RTMR0: a copy of /sys/firmware/qemu_fw_cfg/by_name/etc, out of a virtual machine with the same devices",
    )
    snp = _add(actions, "snp", measure.measure_snp, "the launch measurement, one for each number of processors")
    _add_processors(snp)
    for parser in (tdx, snp):
        parser.add_argument("--name", required=True, metavar="NAME", help="what the image is called")
        parser.add_argument("--firmware", type=Path, required=True, metavar="FILE", help="the whole OVMF image")
        parser.add_argument("--kernel", type=Path, required=True, metavar="FILE", help="what QEMU gets as -kernel")
        parser.add_argument("--initrd", type=Path, metavar="FILE", help="what QEMU gets as -initrd, if anything")
        parser.add_argument("--append", required=True, metavar="TEXT", help="the command line, every byte of it")


def _add_processors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vcpus",
        type=int,
        action="append",
        required=True,
        metavar="N",
        help="how many processors the guest has; may be repeated, each number has a measurement of its own",
    )
    parser.add_argument(
        "--vcpu-type",
        choices=VCPU_TYPES,
        default="EPYC-v4",
        metavar="MODEL",
        help="QEMU's -cpu, for example EPYC-Milan (default: %(default)s)",
    )
    parser.add_argument(
        "--guest-features",
        type=lambda text: int(text, 0),
        default=1,
        metavar="BITS",
        help="SEV_FEATURES that the host's KVM gives its guests (default: %(default)s, SNP alone)",
    )
