"""Leases: at any time at most one guest may write to a volume. Pure; the time is told by `csi.broker.liveness`.

A guest takes the lease before it announces or writes anything, proves with each change that it has it, and renews it while
it lives. Nobody else gets it while it is live. The guest counts its time from before it asked, the broker from when it
answered, so the guest stops believing first. After a restart the broker gives each lease its full length once more.
"""

from collections.abc import Callable
from dataclasses import replace

from csi.core.errors import Busy, LeaseLost, Refused
from csi.kbs.register import Lease, VolumeRecord, VolumeState

_NOBODY = "0" * 64
_UNKNOWN = "unknown"


def take(
    record: VolumeRecord, wanted: Lease, *, instead: str | None, remaining: Callable[[Lease], float]
) -> VolumeRecord:
    """The lease becomes the caller's; the lease with the digest `instead` is the caller's own of before.

    Raises `Busy` while another one is live, `Refused` for a volume that nobody may open.
    """
    if record.state in (VolumeState.RETIRED, VolumeState.SHREDDED):
        raise Refused(f"volume {record.volume_id} is {record.state} in the register: nobody may write to it")
    held = record.lease
    if held is not None and held.digest == wanted.digest:
        return _if_not_revoked(record, held)
    if held is not None and held.digest != instead and (left := remaining(held)) > 0:
        raise Busy(_told(record, held, left))
    return _next(record, wanted)


def hold(record: VolumeRecord, digest: str) -> Lease:
    """The lease, if it is this one. Raises `LeaseLost`. One that ended and that nobody took since is held still."""
    held = record.lease
    if held is None or held.digest != digest:
        raise LeaseLost(
            f"the lease of volume {record.volume_id} is not this guest's any more: another guest has opened the volume, or "
            "an operator ended the lease"
        )
    _if_not_revoked(record, held)
    return held


def release(record: VolumeRecord, digest: str) -> VolumeRecord:
    """The holder has stopped writing. A lease that is another one's by now stays as it is."""
    held = record.lease
    return record if held is None or held.digest != digest else _next(record, None)


def end(record: VolumeRecord) -> VolumeRecord:
    """An operator vouches that the holder is dead."""
    return record if record.lease is None else _next(record, None)


def revoked(lease: Lease | None) -> Lease | None:
    """A lease after a person decided against its holder, who has to learn of it before anybody else may write."""
    return None if lease is None else replace(lease, revoked=True)


def unknown(lease: Lease | None, seconds: int) -> Lease:
    """In a restored register: whoever had leases since the backup may still be writing."""
    digest = _NOBODY if lease is None else lease.digest
    longest = seconds if lease is None else max(seconds, lease.seconds)
    return Lease(digest=digest, holder=_UNKNOWN, seconds=longest, revoked=True)


def _next(record: VolumeRecord, lease: Lease | None) -> VolumeRecord:
    return replace(record, lease=lease, revision=record.revision + 1, last_nonce=None)


def _if_not_revoked(record: VolumeRecord, held: Lease) -> VolumeRecord:
    if held.revoked:
        raise LeaseLost(f"an operator has taken the lease of volume {record.volume_id} back")
    return record


def _told(record: VolumeRecord, held: Lease, left: float) -> str:
    sure = f"sealed-local broker volume end-lease {record.volume_id}"
    if held.holder == _UNKNOWN:
        return (
            f"the register was restored, and a guest that it knows nothing of may still write to {record.volume_id}. "
            f"It opens in {left:.0f} s, or, if no guest is left: {sure}"
        )
    return (
        f"volume {record.volume_id} is open in another guest ({held.holder}), whose lease lasts {left:.0f} s more if it is "
        f"not renewed. End that guest, or wait; if it is certainly dead: {sure}"
    )
