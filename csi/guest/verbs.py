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
    from csi.guest.policy import GuestPolicy, VolumePolicy
    from csi.guest.seal.keys import VolumeKeys
    from csi.guest.session import Session
    from csi.guest.work import Work
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
    measured: "GuestPolicy | None" = None
    """The policy, where the caller has had it measured already: what chose the volume is what opens it."""


def open_volume(guest: Guest, wanted: Wanted, progress: Progress, *, supervised: bool = False) -> Opened:
    """Unlock and mount. The broker is asked once: its audit log says how often a secret went out.

    `supervised`: the caller ends whoever uses the volume when its lease becomes doubtful.
    """
    with _at_work(guest, wanted, progress, lease=True, supervised=supervised) as work:
        opened = work.unlock()
    guest.notes.remember(opened, progress)
    return opened


def map_volume(guest: Guest, wanted: Wanted, progress: Progress) -> str:
    """Map a formatted volume and don't mount it, for the filesystem's own repair tools; returns the mapping's path."""
    with _at_work(guest, wanted, progress, lease=True) as work:
        return work.map_only().path


def inspect_volume(guest: Guest, wanted: Wanted, progress: Progress) -> list[str]:
    """Say what the disk shows and what the register says. Changes neither; the broker notes that a secret went out."""
    with _at_work(guest, wanted, progress) as work:
        return list(work.described())


def repair_volume(guest: Guest, wanted: Wanted, progress: Progress) -> list[str]:
    """Write anew what of the head can't be read, then say what is there as `inspect` does."""
    with _at_work(guest, wanted, progress, lease=True) as work:
        if not work.repair():
            progress("header copies and state record are whole; nothing was written")
        return list(work.described())


def recover_key(guest: Guest, wanted: Wanted, target: str, progress: Progress) -> None:
    """Write the passphrase of keyslot 0, 32 raw bytes, to a new file that its owner alone can read. Needs no device."""
    from csi.core import process

    process.harden()
    policy = measured_policy(guest, wanted.policy)
    rule, volume_id = policy.resolve(wanted.volume, wanted.volume_id)
    with closing(_broker(guest, policy)) as broker:
        keys, version = _keys(broker, policy, rule, volume_id)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidInput("--to", f"{target} can't be made: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(keys.passphrase.reveal())
    progress(f"the passphrase of {volume_id} (key version {version}) is in {target}")


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
def _at_work(
    guest: Guest, wanted: Wanted, progress: Progress, *, lease: bool = False, supervised: bool = False
) -> Iterator["Work"]:
    """What a verb needs that works with the volume's key: alone in this guest, with the broker's answer and the device.

    A verb that writes needs the lease, too, if the policy lets it write at all and the broker has any.
    """
    from csi.core import process

    process.harden()
    policy = wanted.measured or measured_policy(guest, wanted.policy)
    rule, volume_id = policy.resolve(wanted.volume, wanted.volume_id)
    rule = rule.mounted_at(wanted.mount_point)
    with guest.notes.only_one(volume_id, _PATIENCE_SECONDS), closing(_broker(guest, policy)) as broker:
        if policy.broker.root is not None:
            root = policy.broker.root
            yield _derived(guest, wanted, progress, broker=broker, root=root, rule=rule, volume_id=volume_id)
            return
        session, record = _registered(guest, wanted, progress, broker=broker, rule=rule, volume_id=volume_id)
        if not lease or session.read_only:
            yield _with_register(session, record)
            return
        held = guest.leases().held(
            broker, policy.broker, rule, record, progress, supervised=supervised, patience=wanted.patience
        )
        with held as record:
            yield _with_register(session, record)


def _with_register(session: "Session", record: "VolumeRecord") -> "Work":
    from csi.guest.work import RegisteredWork

    return RegisteredWork(session=session, record=record)


def _registered(
    guest: Guest, wanted: Wanted, progress: Progress, *, broker: "BrokerRegister", rule: "VolumePolicy", volume_id: str
) -> tuple["Session", "VolumeRecord"]:
    from csi.guest import find, released
    from csi.guest.session import Session

    device = _known_device(guest.machine, wanted, volume_id)
    got = released.ask(broker, volume_id, rule.profile, rule.used_as)
    progress(f"the broker released the key of {volume_id} (register: {got.record.state})")
    session = Session(
        volume_id=volume_id,
        keys=got.keys,
        rule=rule,
        device=device or find.volume_device(guest.machine, got, wanted.wait_seconds),
        register=broker,
        machine=guest.machine,
        progress=progress,
    )
    return session, got.record


def _derived(
    guest: Guest,
    wanted: Wanted,
    progress: Progress,
    *,
    broker: "BrokerRegister",
    root: str,
    rule: "VolumePolicy",
    volume_id: str,
) -> "Work":
    from csi.guest import find
    from csi.guest.derived.ask import ask
    from csi.guest.derived.work import DerivedWork
    from csi.guest.session import DeviceSession

    device = _known_device(guest.machine, wanted, volume_id)
    got = ask(broker, root, volume_id, rule.used_as)
    progress(f"the broker released {root}, and the key of {volume_id} is derived from it")
    session = DeviceSession(
        volume_id=volume_id,
        keys=got.keys,
        rule=rule,
        device=device or find.derived_device(guest.machine, volume_id, got.keys, wanted.wait_seconds),
        machine=guest.machine,
        progress=progress,
    )
    return DerivedWork(session=session, share=got.share)


def _keys(
    broker: "BrokerRegister", policy: "GuestPolicy", rule: "VolumePolicy", volume_id: str
) -> tuple["VolumeKeys", int]:
    """A volume's keys and their version."""
    if policy.broker.root is not None:
        from csi.guest.derived.ask import ask
        from csi.guest.derived.keys import KEY_VERSION

        return ask(broker, policy.broker.root, volume_id, rule.used_as).keys, KEY_VERSION
    from csi.guest import released

    got = released.ask(broker, volume_id, rule.profile, rule.used_as)
    return got.keys, got.record.key_version


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
