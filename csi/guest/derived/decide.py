"""What to do with a device when nobody knows whether the volume was ever formatted: format, open, or refuse. Pure.

The measured policy permits a format, and only a device that shows nothing anywhere gets one, or one whose authenticated
intent says that this volume's only format was cut short. A host that shows a blank device in the place of a used one is
believed.
"""

from dataclasses import dataclass

from csi.core.errors import Blanked, ForeignContent, Refused, RolledBack, SealedLocalError, Tampered
from csi.core.sealed import Profile
from csi.guest.decide import (
    Decision,
    DiskView,
    HeaderCopy,
    Open,
    by_a_copy,
    format_of,
    opened_slots,
    require_device_size,
)
from csi.guest.derived.keys import KEY_VERSION
from csi.guest.seal.state_record import SlotState, StateRecord


def decide(volume_id: str, profile: Profile, disk: DiskView, *, may_format: bool) -> Decision:
    """The one thing that may be done. `may_format` is what the measured policy and the access mode say."""
    if opened_slots(disk):
        return _open(volume_id, profile, disk)
    # An intent lies where the record of the first mount goes, so a disk that shows one was never mounted.
    begun = any(isinstance(slot, StateRecord) for slot in disk.slots)
    if not begun and not disk.blank:
        raise _not_the_volume(volume_id, disk, may_format=may_format)
    if not may_format:
        raise _not_formatted(volume_id, begun=begun)
    return format_of(profile, disk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """A header copy that is written anew from the other one, which `found` authenticates."""

    lost: HeaderCopy
    whole: HeaderCopy
    found: StateRecord


def repair(volume_id: str, profile: Profile, disk: DiskView) -> Mend | None:
    """What has to be written anew; None where nothing is lost. Raises `Refused` where there is no source."""
    if not opened_slots(disk):
        raise Refused(
            f"the device shows no state record of volume {volume_id} that verifies, and without a register nothing says "
            "what it was; it can't be repaired. Where a header copy is whole, recover-key and cryptsetup read it by hand"
        )
    found = _found(volume_id, profile, disk)
    whole = [copy for copy in HeaderCopy if disk.header(copy) == found.header_sha256]
    if not whole:
        raise Refused(
            f"both header copies of volume {volume_id} are lost, and a broker of this kind keeps none; without a copy of "
            "the header from elsewhere the data is lost"
        )
    lost = [copy for copy in HeaderCopy if copy not in whole]
    return Mend(lost=lost[0], whole=whole[0], found=found) if lost else None


def _open(volume_id: str, profile: Profile, disk: DiskView) -> Open:
    decision = by_a_copy(_found(volume_id, profile, disk), disk)
    if decision is None:
        raise Tampered(f"neither header copy of volume {volume_id} is the authenticated one; it is not opened")
    return decision


def _found(volume_id: str, profile: Profile, disk: DiskView) -> StateRecord:
    """The newest record, by what the disk itself says."""
    opened = sorted(opened_slots(disk), key=lambda slot: slot.sequence)
    found = opened[-1]
    if (found.profile, found.key_version) != (profile, KEY_VERSION):
        raise Tampered(f"volume {volume_id} shows profile {found.profile}, and the policy says {profile}")
    # Each record names the one that it follows. All that the disk can be held to.
    for older in opened[:-1]:
        if found.sequence != older.sequence + 1 or found.follows != older.nonce:
            raise RolledBack(
                f"the two state records of volume {volume_id} are not of one history: the host mixed two states of "
                "the disk, or two guests wrote to it at once. Nothing was changed; the data can be read by hand with "
                "recover-key and cryptsetup"
            )
    require_device_size(profile, found.payload_bytes, disk)
    return found


def _not_the_volume(volume_id: str, disk: DiskView, *, may_format: bool) -> SealedLocalError:
    if SlotState.INVALID in disk.slots:
        return Tampered(
            f"the device shows a state record that does not verify as one of volume {volume_id} under this root resource: "
            "the root was replaced or is another one, the volume's namespace and claim in the policy were changed, or "
            "it is another volume's device or a changed one. Nothing was changed, and it is never formatted"
        )
    if may_format:
        return ForeignContent(
            f"the device is not blank and nothing on it belongs to volume {volume_id}; it is not formatted. If it is the "
            "right device and its content is useless, delete the volume and make a new one"
        )
    return Tampered(f"the device shows no state record of volume {volume_id}; nothing was changed")


def _not_formatted(volume_id: str, *, begun: bool) -> SealedLocalError:
    why = "and the policy or the access mode of this guest does not allow to format it"
    if begun:
        return Refused(f"a format of volume {volume_id} was begun and not finished, {why}")
    return Blanked(f"the device shows nothing of volume {volume_id}, {why}. Look for the right device")
