"""`sealed-local guest`: parses, calls one verb, turns an error into an exit status.

Modules are imported when a verb needs them: an emulated or small guest pays for every one.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from csi.core import errors
from csi.guest import command_line

if TYPE_CHECKING:
    from csi.guest.opened import Progress
    from csi.guest.verbs import Guest, Wanted


def main(arguments: Sequence[str], *, guest: "Guest | None" = None) -> int:
    """Run one verb, in this guest unless another is given; returns the exit status."""
    given = command_line.parser().parse_args(arguments)
    verbs: dict[str, Callable[[argparse.Namespace, Guest], int]] = {
        "open": _open,
        "close": _close,
        "status": _status,
        "run": _run,
        "inspect": _inspect,
        "repair": _repair,
        "recover-key": _recover_key,
        "initdata": _initdata,
        "agent-policy": _agent_policy,
    }
    try:
        if given.verb == "serve":
            return _serve(given, guest)
        return verbs[given.verb](given, guest or _this_guest())
    except (errors.SealedLocalError, OSError) as error:
        print(f"sealed-local guest: {error}", file=sys.stderr)
        return next((code for kind, code, _ in command_line.EXIT_CODES if isinstance(error, kind)), 1)


def _this_guest() -> "Guest":
    from csi.core.command import LocalRunner
    from csi.guest.status import Notes
    from csi.guest.this_machine import ThisMachine
    from csi.guest.verbs import Guest

    return Guest(machine=ThisMachine(LocalRunner()), notes=Notes())


def _open(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.verbs import map_volume, open_volume

    if given.no_mount:
        print(map_volume(guest, _wanted(given), _progress()))
        return 0
    opened = open_volume(guest, _wanted(given), _progress())
    if given.json:
        print(json.dumps(asdict(opened)))
    return 0


def _close(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.verbs import close_volume

    was_open = close_volume(guest, given.volume, _progress())
    print(f"{given.volume}: {'closed' if was_open else 'was not open'}", file=sys.stderr)
    return 0


def _status(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.status import described

    leases = guest.leases().notes
    volumes = [volume | {"lease": leases.told(volume["volume_id"])} for volume in guest.notes.listed(guest.machine)]
    if given.json:
        print(json.dumps(volumes))
    else:
        print("\n".join(map(described, volumes)) or "no volume is open")
    return 0


def _initdata(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest import initdata
    from csi.guest.verbs import read_policy

    made = initdata.text(read_policy(given.policy), given.algorithm, given.policy)
    sys.stdout.write(f"{initdata.annotation(made)}\n" if given.annotation else made)
    return 0


def _agent_policy(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest import agent_policy
    from csi.guest.verbs import read_policy

    volume = agent_policy.DirectVolume(
        mount_path=given.mount, fstype=given.fstype, sealed=given.sealed, container=given.container
    )
    sys.stdout.write(agent_policy.with_volume(read_policy(given.policy), volume, given.policy))
    return 0


def _serve(given: argparse.Namespace, guest: "Guest | None") -> int:
    """The process that stays is this one, so it gets no machine and imports nothing of an unlock."""
    from csi.guest.serve.start import Served, serve

    return serve(Served(policy=given.policy, socket=Path(given.socket), cdh=given.cdh, config=given.config), guest)


def _run(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.run import run

    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    return run(guest, _wanted(given), command, _progress())


def _inspect(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.verbs import inspect_volume

    print("\n".join(inspect_volume(guest, _wanted(given), _progress())))
    return 0


def _repair(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.verbs import repair_volume

    print("\n".join(repair_volume(guest, _wanted(given), _progress())))
    return 0


def _recover_key(given: argparse.Namespace, guest: "Guest") -> int:
    from csi.guest.verbs import Wanted, recover_key

    wanted = Wanted(policy=given.policy, volume=given.volume, volume_id=given.id, device=None, wait_seconds=0.0)
    recover_key(guest, wanted, given.to, _progress())
    return 0


def _wanted(given: argparse.Namespace) -> "Wanted":
    from csi.guest.patience import Patience
    from csi.guest.verbs import Wanted

    return Wanted(
        policy=given.policy,
        volume=given.volume,
        volume_id=given.id,
        device=given.device,
        wait_seconds=given.wait,
        patience=Patience(seconds=getattr(given, "wait_for_lease", 0.0)),
    )


def _progress() -> "Progress":
    """Each step on standard error, with the seconds since now."""
    started = time.monotonic()
    return lambda text: print(f"[{time.monotonic() - started:6.2f} s] {text}", file=sys.stderr, flush=True)
