"""`guest serve` from its options to its end."""

import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from csi.guest.serve import behind, front, nursery

if TYPE_CHECKING:
    from csi.guest.machine import Machine
    from csi.guest.verbs import Guest


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The options of `serve`; each field is the option of that name."""

    policy: str
    socket: Path
    cdh: str | None
    config: str | None


def serve(served: Served, guest: "Guest | None" = None) -> int:
    """Serve until SIGTERM. Raises `InvalidInput` or `OSError` before the socket has its name, if it can't begin."""
    other = behind.socket_beside(served.socket) if served.cdh is not None else None
    hub = None
    with ExitStack() as stack:
        if served.cdh is not None and other is not None:
            config = behind.write_config(served.config, served.socket.parent, other)
            hub = stack.enter_context(behind.start(served.cdh, config, other))
        nursery.spare_this_process()
        listener = stack.enter_context(front.listen(served.socket))
        stack.callback(served.socket.unlink, missing_ok=True)
        front.Front(
            listener,
            prepare=lambda: _ready(served.policy, guest),
            behind=str(other) if other is not None else None,
            hub=hub,
            say=lambda text: print(f"sealed-local guest serve: {text}", file=sys.stderr, flush=True),
        ).run()
    return 0


def _ready(policy: str, guest: "Guest | None") -> nursery.Ready:
    """All that an unlock imports, so that no worker has to."""
    import encodings.idna  # noqa: F401

    from cryptography.hazmat.backends.openssl import backend  # noqa: F401

    from csi.core.command import LocalRunner
    from csi.core.errors import SealedLocalError
    from csi.guest import close, devices, find, keeper, leases, released, session, unlock, verbs  # noqa: F401
    from csi.guest import policy as guest_policy
    from csi.guest.attest import https, kbs_client, lease_client, platform  # noqa: F401
    from csi.guest.serve.keeper_ahead import KeeperAhead
    from csi.guest.serve.worker import Worker
    from csi.guest.status import Notes
    from csi.guest.this_machine import ThisMachine
    from csi.guest.verbs import Guest

    def made_ahead() -> None:
        """What is made of the policy. It may come later, and each worker reads it anew: this is kept beside it."""
        with suppress(SealedLocalError):
            https.pinned(guest_policy.parse(verbs.read_policy(policy), policy).broker.ca_pem)

    devices.context()
    made_ahead()
    serving = guest or Guest(machine=ThisMachine(LocalRunner()), notes=Notes())

    def ready() -> nursery.Work:
        try:
            prepared = replace(serving, start_keeper=KeeperAhead(serving.leases()).start)
        except OSError:  # No process is free at this moment. An unlock may find one, and says so if it doesn't.
            prepared = serving
        made_ahead()
        kbs_client.process_key()
        _look_once(serving.machine)
        return Worker(guest=prepared, policy=policy)

    return ready


def _look_once(machine: "Machine") -> None:
    """Looking at the machine takes tens of times as long the first time. No answer of now matters, nor does a failure."""
    from csi.core.device_number import DeviceNumber
    from csi.core.errors import SealedLocalError

    for look in (lambda: machine.node_of(DeviceNumber(0, 0)), lambda: machine.mapping("none"), machine.mounts):
        with suppress(SealedLocalError, OSError):
            look()
