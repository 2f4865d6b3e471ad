"""Which disk of this guest is a volume: the one whose records verify. A blank disk is nobody's, so it is never guessed."""

from collections.abc import Callable

from csi.core.errors import NotFound, Refused, SealedLocalError
from csi.guest.machine import Machine
from csi.guest.released import Released
from csi.guest.seal import state_record
from csi.guest.seal.keys import VolumeKeys
from csi.guest.seal.mapping import mapping_name
from csi.guest.seal.state_record import StateRecord
from csi.kbs.register import Announcement, VolumeState

_NOTHING = (-1, -1)


def mapped_device(machine: Machine, volume_id: str) -> str | None:
    """The device below a mapping that an earlier call made for this volume; None when there is none."""
    mapping = machine.mapping(mapping_name(volume_id))
    return machine.node_of(mapping.below) if mapping is not None and mapping.below is not None else None


def volume_device(machine: Machine, released: Released, seconds: float) -> str:
    """The device of a volume, waited for.

    Raises `NotFound` when no disk shows the volume, `Refused` when it was never formatted: then nothing tells its disk from
    another blank one, and the wrong one would be formatted.
    """
    present: tuple[str, ...] = ()
    is_new = released.record.state is not VolumeState.ACTIVE
    for present in machine.disks_appearing(seconds):
        # An old copy may be plugged in, too; which of the two is meant, the register says.
        newest = _newest(machine, present, released.volume_id, released.keys, released.record.knows)
        if newest is not None:
            return newest
        if is_new:
            break
    names = ", ".join(present) or "none"
    if is_new:
        raise Refused(
            f"volume {released.volume_id} is new, so no disk can be known by its records; say which is its disk by "
            f"--device. Disks now: {names}"
        )
    raise NotFound(
        f"no disk of this guest shows volume {released.volume_id} (disks: {names}). Was it plugged in? Name its disk by "
        "--device to learn what is wrong with it"
    )


def derived_device(machine: Machine, volume_id: str, keys: VolumeKeys, seconds: float) -> str:
    """The same without a register: nobody knows whether the volume is new, so the time is waited for. Raises `NotFound`."""
    present: tuple[str, ...] = ()
    for present in machine.disks_appearing(seconds):
        newest = _newest(machine, present, volume_id, keys, lambda _: True)
        if newest is not None:
            return newest
    raise NotFound(
        f"no disk of this guest shows volume {volume_id} under this root resource (disks: {', '.join(present) or 'none'}). "
        "Was it plugged in? Name its disk by --device to learn what is wrong with it, or if the volume is new"
    )


def _newest(
    machine: Machine, present: tuple[str, ...], volume_id: str, keys: VolumeKeys, knows: Callable[[Announcement], bool]
) -> str | None:
    """The disk that comes first by `_rank`; None where none shows the volume."""
    shown = {device: _rank(machine, device, volume_id, keys, knows) for device in present}
    newest = max(present, key=lambda device: shown[device], default=None)
    return newest if newest is not None and shown[newest] > _NOTHING else None


def _rank(
    machine: Machine, device: str, volume_id: str, keys: VolumeKeys, knows: Callable[[Announcement], bool]
) -> tuple[int, int]:
    """How near a device is to what is known: a state that is known, before any other one of the volume, the newer before
    the older. `_NOTHING` for a disk that shows none or can't be read.
    """
    try:
        slots = [state_record.decode(slot, keys, volume_id) for slot in machine.read_slots(device)]
    except (SealedLocalError, OSError):
        return _NOTHING
    ours = [slot for slot in slots if isinstance(slot, StateRecord)]
    newest = max(ours, key=lambda slot: slot.sequence, default=None)
    if newest is None:
        return _NOTHING
    return int(knows(newest.announcement)), newest.generation
