"""The rules by which a volume's record changes. Pure: a record and a wish in, the next record or an error out.

absent → allocated → formatting → active ⇄ retired → shredded. What these rules guarantee whatever guests die, race or
repeat themselves, and whatever the host does:

- A volume that was ever `active` is never given a permission to format again.
- Of guests that race, one wins every change; the others get `Busy` or `Refused` and must start over.
- An announcement (generation, nonce, epoch) is made once, and numbers only rise. Only the newest one can be committed.
- After a restore nothing opens but what the backup had as committed; after a person's `accept`, nothing but the accepted.
  A person's `accept_unread` makes a state that no disk shows, so nothing opens but a disk that a guest repaired.
- A commit whose answer was lost may be repeated: same nonce, same values, same answer, as long as nothing came after.

That one guest at a time writes is what leases are for: `csi.broker.leases`.
"""

from dataclasses import replace

from csi.broker import leases
from csi.core.errors import Busy, InvalidInput, Refused
from csi.core.sealed import Profile
from csi.kbs.disk_state import DiskState
from csi.kbs.register import MOST_CANDIDATES, Accepted, Announcement, FormatGrant, VolumeRecord, VolumeState

_FIRST_GENERATION = 1
_ACCEPTED_KEPT = 16
"""The audit log has all of them."""


def allocate(volume_id: str, profile: Profile) -> VolumeRecord:
    """The first record of a volume. Its profile is fixed here for ever."""
    if not profile.is_sealed:
        raise InvalidInput("profile", f"{profile} volumes have no secret and no record")
    return VolumeRecord(volume_id=volume_id, key_version=1, profile=profile, state=VolumeState.ALLOCATED, revision=1)


def check_open(record: VolumeRecord, profile: Profile) -> None:
    """Raise `Refused` unless the secret may go to a guest that expects `profile`."""
    if record.state in (VolumeState.RETIRED, VolumeState.SHREDDED):
        raise _wrong_state(record, "its secret is not released any more")
    if record.profile is not profile:
        raise Refused(
            f"volume {record.volume_id} has the profile {record.profile}, the guest asks for {profile}; "
            "a profile never changes: correct the guest's policy or the StorageClass"
        )


def begin_format(
    record: VolumeRecord,
    *,
    revision: int,
    nonce: str,
    payload_bytes: int,
    measurement: str,
    epoch: str,
    now_unix: int,
    lifetime_seconds: int,
) -> VolumeRecord:
    """`allocated` → `formatting`, or take over the formatting of a dead guest of the same measurement."""
    if record.state is VolumeState.ALLOCATED:
        _same_revision(record, revision)
        deadline = now_unix + lifetime_seconds
    elif record.state is VolumeState.FORMATTING and record.grant is not None:
        if _is_repeat(record, revision, nonce) and record.payload_bytes == payload_bytes:
            _same_measurement(record, record.grant, measurement)
            return record
        _check_takeover(record, record.grant, measurement, now_unix)
        _same_revision(record, revision)
        _new_nonce(record, nonce)
        # The deadline stays: a host that kills every guest gets a bounded time to do so, then a person looks.
        deadline = record.grant.deadline_unix
    else:
        raise _wrong_state(record, "it is never formatted again; data on it, if any, stays as it is")
    grant = FormatGrant(nonce=nonce, measurement=measurement, deadline_unix=deadline, epoch=epoch)
    return _next(record, state=VolumeState.FORMATTING, grant=grant, payload_bytes=payload_bytes, last_nonce=nonce)


def commit_format(
    record: VolumeRecord, *, revision: int, nonce: str, measurement: str, header_sha256: str, payload_bytes: int
) -> VolumeRecord:
    """`formatting` → `active`, generation 1. Allowed after the deadline, too: the grant still stands, so no one else has
    formatted since, and a large device may take long.
    """
    if record.generation == _FIRST_GENERATION and _is_repeated_commit(record, revision, nonce):
        if (record.header_sha256, record.payload_bytes) != (header_sha256, payload_bytes):
            raise Refused(f"volume {record.volume_id} was committed with other values under the same nonce")
        return record
    if record.state is not VolumeState.FORMATTING or record.grant is None:
        raise _wrong_state(record, "there is no permission to format that could be committed")
    _same_revision(record, revision)
    if record.grant.nonce != nonce:
        raise Refused(f"the permission to format volume {record.volume_id} belongs to another guest; start over")
    _same_measurement(record, record.grant, measurement)
    if record.payload_bytes != payload_bytes:
        raise Refused(
            f"volume {record.volume_id} was to be formatted with {record.payload_bytes} bytes, not {payload_bytes}"
        )
    return _next(
        record,
        state=VolumeState.ACTIVE,
        grant=None,
        header_sha256=header_sha256,
        announced=max(record.announced, _FIRST_GENERATION),
        head=Announcement(generation=_FIRST_GENERATION, nonce=nonce, epoch=record.grant.epoch),
        last_nonce=nonce,
    )


def begin_open(record: VolumeRecord, *, revision: int, nonce: str, generation: int, epoch: str) -> VolumeRecord:
    """Announce the generation above every announced one. The answer's last candidate is the announcement."""
    _only_active(record)
    wanted = Announcement(generation=generation, nonce=nonce, epoch=epoch)
    if record.candidates[-1:] == (wanted,) and _is_repeat(record, revision, nonce):
        return record
    _same_revision(record, revision)
    _new_nonce(record, nonce)
    if generation != record.announced + 1:
        raise Refused(
            f"generation {generation} of volume {record.volume_id} can't be announced: {record.announced} is, so it must "
            f"be {record.announced + 1}"
        )
    if len(record.candidates) >= MOST_CANDIDATES:
        raise Refused(
            f"volume {record.volume_id} was announced {MOST_CANDIDATES} times and never committed: its guests die while "
            "they open it. Find out why; then accept the state that its disk shows: sealed-local broker volume accept "
            f"{record.volume_id}"
        )
    return _next(record, announced=generation, candidates=(*record.candidates, wanted), last_nonce=nonce)


def commit_open(record: VolumeRecord, *, revision: int, nonce: str, generation: int) -> VolumeRecord:
    """The newest announcement is on the disk: it becomes the head."""
    _only_active(record)
    if record.generation == generation > _FIRST_GENERATION and _is_repeated_commit(record, revision, nonce):
        return record
    _same_revision(record, revision)
    newest = record.candidates[-1] if record.candidates else None
    if newest is None or (newest.generation, newest.nonce) != (generation, nonce):
        raise Refused(f"generation {generation} of volume {record.volume_id} was not announced with this nonce")
    return _next(record, head=newest, candidates=(), unwritten=False, last_nonce=nonce)


def accept(record: VolumeRecord, found: DiskState, *, reason: str, now_unix: int) -> VolumeRecord:
    """An operator takes the state that a disk shows for the volume's: from now on it opens, and no other one does.

    The numbers don't go back: the next open is announced above everything that ever was. A volume that is retired stays so
    until it is reinstated. One that was never formatted by this register becomes active: its format is what was forgotten.
    """
    if record.state in (VolumeState.FORMATTING, VolumeState.SHREDDED):
        raise _wrong_state(record, "no state of a disk can be accepted for it")
    known = (record.head, record.candidates, record.header_sha256, record.unwritten)
    if known == (found.announcement, (), found.header_sha256, False):
        return record
    entry = Accepted(at_unix=now_unix, was=record.head, now=found.announcement, reason=reason)
    return _next(
        record,
        state=VolumeState.RETIRED if record.state is VolumeState.RETIRED else VolumeState.ACTIVE,
        header_sha256=found.header_sha256,
        payload_bytes=found.payload_bytes,
        announced=max(record.announced, found.announcement.generation),
        head=found.announcement,
        candidates=(),
        accepted=(*record.accepted, entry)[-_ACCEPTED_KEPT:],
        unwritten=False,
        lease=leases.revoked(record.lease),
    )


def accept_unread(record: VolumeRecord, *, nonce: str, epoch: str, reason: str, now_unix: int) -> VolumeRecord:
    """An operator takes a disk whose state records can't be read for the volume's. It gets a state that no disk shows: a
    guest's `repair` writes that beside the header that the register knows, and from now on nothing else opens.
    """
    if record.state not in (VolumeState.ACTIVE, VolumeState.RETIRED) or record.header_sha256 is None:
        raise _wrong_state(record, "there is no formatted disk whose records could be written anew")
    new = Announcement(generation=record.announced + 1, nonce=nonce, epoch=epoch)
    entry = Accepted(at_unix=now_unix, was=record.head, now=new, reason=reason)
    return _next(
        record,
        announced=new.generation,
        head=new,
        candidates=(),
        accepted=(*record.accepted, entry)[-_ACCEPTED_KEPT:],
        unwritten=True,
        lease=leases.revoked(record.lease),
    )


def restored(record: VolumeRecord, lease_seconds: int) -> VolumeRecord:
    """What a backup's record says in the register that is restored from it.

    What was announced or granted at the backup may have been committed since and left behind by later ones, so it counts no
    more. What was committed at the backup still does. Who may be writing now is not known, so nobody else may for so long.
    """
    if record.state is VolumeState.SHREDDED:
        return record
    was = reset(record) if record.state is VolumeState.FORMATTING else record
    return _next(was, candidates=(), lease=leases.unknown(record.lease, lease_seconds))


def reset(record: VolumeRecord) -> VolumeRecord:
    """An operator ends a formatting that nobody will finish. Nothing was committed, so nothing can be lost."""
    if record.state is not VolumeState.FORMATTING:
        raise _wrong_state(record, "only a volume in state formatting can be reset")
    lease = leases.revoked(record.lease)
    return _next(record, state=VolumeState.ALLOCATED, grant=None, payload_bytes=None, lease=lease)


def retire(record: VolumeRecord) -> VolumeRecord:
    """An operator stops the release of the secret; the secret is kept, and `reinstate` takes it back.

    An announced open stays a candidate: it may be on the disk by now. Repeating it changes nothing.
    """
    if record.state is VolumeState.RETIRED:
        return record
    if record.state is VolumeState.SHREDDED:
        raise _wrong_state(record, "there is nothing left to retire")
    return _next(record, state=VolumeState.RETIRED, grant=None)


def reinstate(record: VolumeRecord) -> VolumeRecord:
    """An operator takes a retirement back: `active` again if it ever was, else `allocated`."""
    if record.state is not VolumeState.RETIRED:
        raise _wrong_state(record, "only a retired volume can be reinstated")
    if record.header_sha256 is None:
        return _next(record, state=VolumeState.ALLOCATED, payload_bytes=None)
    return _next(record, state=VolumeState.ACTIVE)


def hand_over(record: VolumeRecord) -> VolumeRecord:
    """An operator gives the volume to another workload. What a guest of the old one had begun has to be begun again."""
    if record.state is VolumeState.SHREDDED:
        raise _wrong_state(record, "there is nothing left to hand over")
    return _next(record, lease=leases.revoked(record.lease))


def shred(record: VolumeRecord) -> VolumeRecord:
    """The secret is destroyed, and with it every copy of the volume. The record stays as a tombstone."""
    if record.state is VolumeState.SHREDDED:
        return record
    if record.state in (VolumeState.ACTIVE, VolumeState.FORMATTING):
        raise _wrong_state(record, "a volume in use is retired first: sealed-local broker volume retire")
    return _next(record, state=VolumeState.SHREDDED, lease=leases.revoked(record.lease))


def _next(record: VolumeRecord, **changes: object) -> VolumeRecord:
    """The next record. Only a guest's change leaves a `last_nonce`: after an operator's nothing can be repeated."""
    return replace(record, **({"revision": record.revision + 1, "last_nonce": None} | changes))  # type: ignore[arg-type]


def _is_repeat(record: VolumeRecord, revision: int, nonce: str) -> bool:
    """Whether the very last change was made from this revision with this nonce."""
    return record.last_nonce == nonce and record.revision == revision + 1


def _is_repeated_commit(record: VolumeRecord, revision: int, nonce: str) -> bool:
    """Whether that change was a commit."""
    return record.head is not None and record.head.nonce == nonce and _is_repeat(record, revision, nonce)


def _same_revision(record: VolumeRecord, revision: int) -> None:
    if record.revision != revision:
        raise Busy(
            f"volume {record.volume_id} changed since it was read (revision {record.revision}, not {revision}): "
            "another guest is at work; read it again"
        )


def _new_nonce(record: VolumeRecord, nonce: str) -> None:
    """A nonce names one change; a guest that used it twice would have two states of the disk that look alike."""
    used = {record.grant.nonce if record.grant else None, record.head.nonce if record.head else None}
    if nonce in used | {candidate.nonce for candidate in record.candidates}:
        raise Refused(f"the nonce was used for volume {record.volume_id} before; each change needs a new one")


def _same_measurement(record: VolumeRecord, grant: FormatGrant, measurement: str) -> None:
    if grant.measurement != measurement:
        raise Refused(
            f"volume {record.volume_id} is being formatted by a guest with another measurement; "
            f"if that guest is gone: sealed-local broker volume reset {record.volume_id}"
        )


def _check_takeover(record: VolumeRecord, grant: FormatGrant, measurement: str, now_unix: int) -> None:
    _same_measurement(record, grant, measurement)
    if now_unix > grant.deadline_unix:
        raise Refused(
            f"the formatting of volume {record.volume_id} was not finished in time; nothing was committed, so an "
            f"operator may allow it again: sealed-local broker volume reset {record.volume_id}"
        )


def _only_active(record: VolumeRecord) -> None:
    if record.state is not VolumeState.ACTIVE:
        raise _wrong_state(record, "only an active volume can be opened for writing")


def _wrong_state(record: VolumeRecord, consequence: str) -> Refused:
    return Refused(f"volume {record.volume_id} is {record.state} in the register: {consequence}")
