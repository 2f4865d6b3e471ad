"""`open` and `close`: what the guest program does with one volume, from a policy file to a mount and back."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from csi.core.errors import InvalidInput, ToolFailed
from csi.guest.machine import Machine
from csi.guest.opened import Opened, Progress
from csi.guest.status import Notes


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """Where the verbs work."""

    machine: Machine
    notes: Notes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a caller of `open` or `run` asks for; each field is the option of that name."""

    policy: str
    volume: str
    volume_id: str | None
    device: str | None
    wait_seconds: float


def open_volume(guest: Guest, wanted: Wanted, progress: Progress) -> Opened:
    """Unlock and mount. The broker is asked once: its audit log says how often a secret went out."""
    from csi.core import process
    from csi.guest import find, released, unlock
    from csi.guest import policy as guest_policy
    from csi.guest.attest import kbs_client
    from csi.guest.session import Session

    process.harden()
    policy = guest_policy.parse(_read(wanted.policy), wanted.policy)
    rule, volume_id = policy.resolve(wanted.volume, wanted.volume_id)
    with guest.notes.only_one(volume_id), closing(kbs_client.BrokerRegister(policy.broker)) as register:
        device = _known_device(guest.machine, wanted, volume_id)
        got = released.ask(register, volume_id, rule.profile)
        progress(f"the broker released the key of {volume_id} (register: {got.record.state})")
        session = Session(
            volume_id=volume_id,
            keys=got.keys,
            rule=rule,
            device=device or find.volume_device(guest.machine, got, wanted.wait_seconds),
            register=register,
            machine=guest.machine,
            progress=progress,
        )
        opened = unlock.unlock(session, got.record)
    guest.notes.remember(opened, progress)
    return opened


def close_volume(guest: Guest, volume_id: str) -> bool:
    """Write back, unmount and close; returns whether the volume was open. Raises what `close` raises."""
    from csi.guest.close import close
    from csi.guest.seal.mapping import mapping_name

    with guest.notes.only_one(volume_id):
        try:
            was_open = close(guest.machine, volume_id)
        except ToolFailed:
            if guest.machine.mapping(mapping_name(volume_id)) is None:
                guest.notes.forget(volume_id)
            raise
        guest.notes.forget(volume_id)
    return was_open


def _known_device(machine: Machine, wanted: Wanted, volume_id: str) -> str | None:
    """The device as far as it is known without a key; None when only its records can tell."""
    from csi.guest import find

    if wanted.device:
        return machine.wait_for(wanted.device, wanted.wait_seconds)
    return find.mapped_device(machine, volume_id)


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInput("--policy", f"{path} can't be read: {reason}") from error
