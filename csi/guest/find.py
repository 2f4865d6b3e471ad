"""Which disk of this guest is a volume: the one whose records verify, or, before the first format, the only blank one."""

from csi.model.errors import NotFound, Refused, SealedLocalError
from csi.model.register import VolumeRecord, VolumeState
from csi.system import devices, sealed_device
from csi.wire import state_record
from csi.wire.keys import VolumeKeys
from csi.wire.state_record import StateRecord


def volume_device(record: VolumeRecord, keys: VolumeKeys, seconds: float) -> str:
    """The device of a volume, waited for. Raises `NotFound` when no disk shows it, `Refused` when several could be it."""
    blank: list[str] = []
    for present in devices.appearing(seconds):
        blank = []
        for device in present:
            match _look(device, keys, record.volume_id):
                case True:
                    return device
                case None:
                    blank.append(device)
        if len(blank) == 1 and record.state is not VolumeState.ACTIVE:
            return blank[0]
    if len(blank) > 1 and record.state is not VolumeState.ACTIVE:
        raise Refused(
            f"volume {record.volume_id} is new and several disks are blank ({', '.join(blank)}); name one by --device"
        )
    raise NotFound(f"no disk of this guest is volume {record.volume_id}; blank disks: {', '.join(blank) or 'none'}")


def _look(device: str, keys: VolumeKeys, volume_id: str) -> bool | None:
    """True: the records are this volume's; None: blank; False: something else, or not readable alone."""
    try:
        head = sealed_device.read_head(device)
    except SealedLocalError:
        return False
    slots = [state_record.decode(slot, keys, volume_id) for slot in head.slots()]
    if any(isinstance(slot, StateRecord) for slot in slots):
        return True
    return None if head.zero_but_slots() else False
