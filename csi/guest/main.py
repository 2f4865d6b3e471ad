"""The command line of `sealed-local guest`: parses, calls one verb, turns an error into an exit status.

Modules are imported when a verb needs them: an emulated or small guest pays for every one.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from csi.core import errors

if TYPE_CHECKING:
    from csi.guest.opened import Progress
    from csi.guest.verbs import Guest, Wanted

_LONGEST_WAIT_SECONDS = 86400.0

_EXIT_CODES: tuple[tuple[type[BaseException], int, str], ...] = (
    (errors.InvalidInput, 2, "wrong option or policy, or a volume that the policy does not allow"),
    (errors.Blanked, 4, "a formatted volume shows nothing: wrong device or lost data; never formatted again"),
    (errors.RolledBack, 5, "an older state of the volume, or of the broker's database"),
    (errors.Untrusted, 3, "what the host shows does not verify (changed header, other volume, wrong mapping)"),
    (errors.NotReleased, 6, "the broker does not release the key to this guest"),
    (errors.ForeignContent, 7, "a device that should be new holds something"),
    (errors.NotFound, 8, "no such device or volume"),
    (errors.Unavailable, 9, "the broker, the pinned one, can't be reached or sends no sensible answer; try again"),
    (errors.Refused, 10, "the volume's state or use forbids it; the message says what to do"),
    (errors.Unsupported, 12, "the broker asks for what this guest can't do"),
    (errors.Busy, 11, "another guest, or another call in this one, works on the volume at this moment; try again"),
)

_DESCRIPTION = """Inside the confidential guest: attests to the broker, gets the volume's key, verifies the device, mounts
its filesystem. It believes the measured policy, the broker and its own checks, and nothing that the host says. It
formats only what the register says was never formatted."""

_EPILOG = """The policy (TOML) is part of the measured init-data or image; --policy takes it or the whole init-data text:

  version = 1
  [broker]
  url = "https://10.0.2.2:8443"
  ca = '''-----BEGIN CERTIFICATE----- ...'''   # the only authority that is trusted
  allow_sample = false                          # true: development without a TEE; proves nothing
  timeout_seconds = 30                          # of one exchange
  [[volume]]
  name = "data"                                 # what --volume may say
  id = "pvc-5d1f..."                            # or id_pattern = "pvc-.*": the host then chooses among all
                                                # that match, an empty new volume included
  mount = "/data"                               # must not be a mount point yet
  profile = "xts"
  fstype = "ext4"                               # or xfs
  access = "rw"                                 # or ro
  format = "once"                               # or never: only what is formatted already
  options = ["noatime"]                         # of the mount

Exit status: 0 done; 1 a tool failed; {codes}.
See docs/guest.md."""


def parser() -> argparse.ArgumentParser:
    """The command line of `sealed-local guest`."""
    codes = "; ".join(f"{code} {text}" for _, code, text in sorted(_EXIT_CODES, key=lambda item: item[1]))
    made = argparse.ArgumentParser(
        prog="sealed-local guest",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(codes=codes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    opened = verbs.add_parser("open", help="unlock and mount a volume; once more is fine")
    _common(opened)
    opened.add_argument("--json", action="store_true", help="print the result as JSON")
    closed = verbs.add_parser("close", help="unmount and close a volume; one that isn't open is fine")
    closed.add_argument("--volume", required=True, help="volume id, as `status` shows it")
    shown = verbs.add_parser("status", help="show the volumes that are open")
    shown.add_argument("--json", action="store_true", help="as JSON")
    run = verbs.add_parser("run", help="open a volume, run a command, close it; the command's status is the answer")
    _common(run)
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND [ARGUMENTS]")
    return made


def main(arguments: Sequence[str], *, guest: "Guest | None" = None) -> int:
    """Run one verb, in this guest unless another is given; returns the exit status."""
    given = parser().parse_args(arguments)
    verbs: dict[str, Callable[[argparse.Namespace, Guest], int]] = {
        "open": _open,
        "close": _close,
        "status": _status,
        "run": _run,
    }
    try:
        return verbs[given.verb](given, guest or _this_guest())
    except (errors.SealedLocalError, OSError) as error:
        print(f"sealed-local guest: {error}", file=sys.stderr)
        return next((code for kind, code, _ in _EXIT_CODES if isinstance(error, kind)), 1)


def _common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--policy", required=True, help="policy or init-data file (part of what is measured)")
    verb.add_argument(
        "--volume", required=True, help="volume id, or the name of a rule of the policy that has a fixed id"
    )
    verb.add_argument("--id", help="volume id, when --volume is the name of a rule with a pattern")
    verb.add_argument(
        "--device", help="block device; a formatted volume is found by its authenticated records when it is left out"
    )
    verb.add_argument(
        "--wait", type=_seconds, default=30.0, metavar="SECONDS", help="how long to wait for the device (30)"
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _LONGEST_WAIT_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {_LONGEST_WAIT_SECONDS:g}")
    return value


def _this_guest() -> "Guest":
    from csi.core.command import LocalRunner
    from csi.guest.status import Notes
    from csi.guest.this_machine import ThisMachine
    from csi.guest.verbs import Guest

    return Guest(machine=ThisMachine(LocalRunner()), notes=Notes())


def _open(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.verbs import open_volume

    opened = open_volume(guest, _wanted(given), _progress())
    if given.json:
        print(json.dumps(asdict(opened)))
    return 0


def _close(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.verbs import close_volume

    was_open = close_volume(guest, given.volume)
    print(f"{given.volume}: {'closed' if was_open else 'was not open'}", file=sys.stderr)
    return 0


def _status(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.status import described

    volumes = guest.notes.listed(guest.machine)
    if given.json:
        print(json.dumps(volumes))
    else:
        print("\n".join(map(described, volumes)) or "no volume is open")
    return 0


def _run(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.run import run

    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    return run(guest, _wanted(given), command, _progress())


def _wanted(given: argparse.Namespace) -> "Wanted":
    from csi.guest.verbs import Wanted

    return Wanted(
        policy=given.policy, volume=given.volume, volume_id=given.id, device=given.device, wait_seconds=given.wait
    )


def _progress() -> "Progress":
    """Each step on standard error, with the seconds since now."""
    started = time.monotonic()
    return lambda text: print(f"[{time.monotonic() - started:6.2f} s] {text}", file=sys.stderr, flush=True)
