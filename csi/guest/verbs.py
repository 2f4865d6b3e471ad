"""What the guest program does with one volume, from a policy file to a mount and back, and what repairs need."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csi.core.errors import InUse, InvalidInput, ToolFailed
from csi.guest.machine import Machine
from csi.guest.opened import Opened, Progress
from csi.guest.patience import NO_PATIENCE, Patience
from csi.guest.status import Notes

if TYPE_CHECKING:
    from csi.guest.attest.kbs_client import BrokerRegister
    from csi.guest.attest.platform import Platform
    from csi.guest.leases import Leases, Start
    from csi.guest.policy import GuestPolicy
    from csi.guest.session import Session
    from csi.kbs.register import VolumeRecord


_PATIENCE_SECONDS = 15.0
"""For another call in this guest, which may be closing the volume and giving its lease back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """Where the verbs work."""

    machine: Machine
    notes: Notes
    start_keeper: "Start | None" = None
    """How a lease's keeper is started; a test has its own way."""
    root: Path = Path("/")
    """Where the kernel's files about the TEE lie; a test has a folder of its own."""

    def leases(self) -> "Leases":
        """The leases of this guest, noted beside its open volumes."""
        from csi.guest.lease_note import LeaseNotes
        from csi.guest.leases import Leases

        notes = LeaseNotes(folder=self.notes.folder / "leases")
        return Leases(machine=self.machine, notes=notes, opened=self.notes, start=self.start_keeper)

    def platform(self) -> "Platform":
        """What this guest's machine is."""
        from csi.guest.attest.platform import Platform

        return Platform(root=self.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a caller of `open` or `run` asks for; each field is the option of that name."""

    policy: str
    volume: str
    volume_id: str | None
    device: str | None
    wait_seconds: float
    mount_point: str | None = None
    """Where a runtime wants the volume, if the rule leaves that to it."""
    patience: Patience = NO_PATIENCE
    """With another guest that has the volume."""


def open_volume(guest: Guest, wanted: Wanted, progress: Progress, *, supervised: bool = False) -> Opened:
    """Unlock and mount. The broker is asked once: its audit log says how often a secret went out.

    `supervised`: the caller ends whoever uses the volume when its lease becomes doubtful.
    """
    from csi.guest import unlock

    with _released(guest, wanted, progress, lease=True, supervised=supervised) as (session, record):
        opened = unlock.unlock(session, record)
    guest.notes.remember(opened, progress)
    return opened


def map_volume(guest: Guest, wanted: Wanted, progress: Progress) -> str:
    """Map a formatted volume and don't mount it, for the filesystem's own repair tools; returns the mapping's path."""
    from csi.guest import unlock

    with _released(guest, wanted, progress, lease=True) as (session, record):
        return unlock.map_only(session, record).path


def inspect_volume(guest: Guest, wanted: Wanted, progress: Progress) -> list[str]:
    """Say what the disk shows and what the register says. Changes neither; the broker notes that a secret went out."""
    from csi.guest import inspect, unlock

    with _released(guest, wanted, progress) as (session, record):
        return list(inspect.described(record, unlock.look(session)))


def repair_volume(guest: Guest, wanted: Wanted, progress: Progress) -> list[str]:
    """Write anew what of the head can't be read, then say what is there as `inspect` does."""
    from csi.guest import inspect, unlock

    with _released(guest, wanted, progress, lease=True) as (session, record):
        if not unlock.repair(session, record):
            progress("header copies and state record are whole; nothing was written")
        return list(inspect.described(record, unlock.look(session)))


def recover_key(guest: Guest, wanted: Wanted, target: str, progress: Progress) -> None:
    """Write the passphrase of keyslot 0, 32 raw bytes, to a new file that its owner alone can read. Needs no device."""
    from csi.core import process
    from csi.guest import released

    process.harden()
    policy = measured_policy(guest, wanted.policy)
    rule, volume_id = policy.resolve(wanted.volume, wanted.volume_id)
    with closing(_broker(guest, policy)) as register:
        got = released.ask(register, volume_id, rule.profile, rule.used_as)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidInput("--to", f"{target} can't be made: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(got.keys.passphrase.reveal())
    progress(f"the passphrase of {volume_id} (key version {got.record.key_version}) is in {target}")


def close_volume(guest: Guest, volume_id: str, progress: Progress, *, only_unmounted: bool = False) -> bool:
    """Write back, unmount, close, give the lease back; returns whether the volume was open. Raises what `close` raises.

    `only_unmounted`: raises `InUse` for a volume that is mounted, and leaves it as it is.
    """
    from csi.guest.close import close
    from csi.guest.seal.mapping import mapping_name

    with guest.notes.only_one(volume_id):
        mapping = guest.machine.mapping(mapping_name(volume_id)) if only_unmounted else None
        if mapping is not None and any(mount.device == mapping.device for mount in guest.machine.mounts()):
            raise InUse(f"volume {volume_id} is mounted")
        try:
            was_open = close(guest.machine, volume_id)
        except ToolFailed:
            if guest.machine.mapping(mapping_name(volume_id)) is None:
                guest.leases().give_back(volume_id, progress)
                guest.notes.forget(volume_id)
            raise
        guest.leases().give_back(volume_id, progress)
        guest.notes.forget(volume_id)
    return was_open


@contextmanager
def _released(
    guest: Guest, wanted: Wanted, progress: Progress, *, lease: bool = False, supervised: bool = False
) -> Iterator[tuple["Session", "VolumeRecord"]]:
    """What a verb needs that works with the volume's key: alone in this guest, with the broker's answer and the device.

    A verb that writes needs the lease, too, if the policy lets it write at all.
    """
    from csi.core import process
    from csi.guest import find, released
    from csi.guest.session import Session

    process.harden()
    policy = measured_policy(guest, wanted.policy)
    rule, volume_id = policy.resolve(wanted.volume, wanted.volume_id)
    rule = rule.mounted_at(wanted.mount_point)
    with guest.notes.only_one(volume_id, _PATIENCE_SECONDS), closing(_broker(guest, policy)) as register:
        device = _known_device(guest.machine, wanted, volume_id)
        got = released.ask(register, volume_id, rule.profile, rule.used_as)
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
        if not lease or session.read_only:
            yield session, got.record
            return
        held = guest.leases().held(
            register, policy.broker, rule, got.record, progress, supervised=supervised, patience=wanted.patience
        )
        with held as record:
            yield session, record


def measured_policy(guest: Guest, path: str) -> "GuestPolicy":
    """The policy in a file, which a TEE has to vouch for before any word of it is obeyed."""
    from csi.guest import policy as guest_policy

    policy = guest_policy.parse(read_policy(path), path)
    guest.platform().require_measured(policy.broker)
    return policy


def _broker(guest: Guest, policy: "GuestPolicy") -> "BrokerRegister":
    from csi.guest.attest.kbs_client import BrokerRegister

    return BrokerRegister(policy.broker, attester=guest.platform().attester(policy.broker))


def _known_device(machine: Machine, wanted: Wanted, volume_id: str) -> str | None:
    """The device as far as it is known without a key; None when only its records can tell."""
    from csi.guest import find

    if wanted.device:
        return machine.wait_for(wanted.device, wanted.wait_seconds)
    return find.mapped_device(machine, volume_id)


def read_policy(path: str) -> str:
    """Text of the policy file. Raises `InvalidInput` when it can't be read."""
    try:
        return Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInput("--policy", f"{path} can't be read: {reason}") from error
