"""The rules by which a volume's record changes. Pure: a record and a wish in, the next record or an error out.

absent → allocated → formatting → active ⇄ retired → shredded. What these rules guarantee whatever guests die, race or
repeat themselves, and whatever the host does:

- A volume that was ever `active` is never given a permission to format again.
- Of guests that race, one wins every change; the others get `Busy` or `Refused` and must start over.
- A generation number is announced once. Only a guest whose own announcement stands can commit it.
- A commit whose answer was lost may be repeated: same nonce, same values, same answer, as long as nothing came after.

The rules don't keep two guests from using one device at the same time: access modes of Kubernetes do.
"""

from dataclasses import replace

from csi.core.errors import Busy, InvalidInput, Refused
from csi.core.sealed import Profile
from csi.kbs.register import FormatGrant, PendingOpen, VolumeRecord, VolumeState

_FIRST_GENERATION = 1
_WIDEST_STEP = 2
"""A takeover skips at most one number, to get at the other state record slot; more would be a guest's mistake."""


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
    now_unix: int,
    lifetime_seconds: int,
) -> VolumeRecord:
    """`allocated` → `formatting`, or take over the formatting of a dead guest of the same measurement."""
    if record.state is VolumeState.ALLOCATED:
        _same_revision(record, revision)
        deadline = now_unix + lifetime_seconds
    elif record.state is VolumeState.FORMATTING and record.grant is not None:
        if (record.revision, record.grant.nonce, record.payload_bytes) == (revision + 1, nonce, payload_bytes):
            _same_measurement(record, record.grant, measurement)
            return record
        _check_takeover(record, record.grant, measurement, now_unix)
        _same_revision(record, revision)
        # The deadline stays: a host that kills every guest gets a bounded time to do so, then a person looks.
        deadline = record.grant.deadline_unix
    else:
        raise _wrong_state(record, "it is never formatted again; data on it, if any, stays as it is")
    grant = FormatGrant(nonce=nonce, measurement=measurement, deadline_unix=deadline)
    return _next(record, state=VolumeState.FORMATTING, grant=grant, payload_bytes=payload_bytes)


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
        generation=_FIRST_GENERATION,
        committed_nonce=nonce,
    )


def begin_open(record: VolumeRecord, *, revision: int, nonce: str, generation: int) -> VolumeRecord:
    """Announce a generation above every announced one (see `VolumeRecord.next_generation`)."""
    _only_active(record)
    if record.pending == PendingOpen(generation=generation, nonce=nonce) and record.revision == revision + 1:
        return record
    _same_revision(record, revision)
    newest = record.newest_generation
    if not newest < generation <= newest + _WIDEST_STEP:
        raise Refused(
            f"generation {generation} of volume {record.volume_id} can't be announced: {record.generation} is committed "
            f"and {newest} announced, so it must be {newest + 1}, or {newest + 2} after a guest that died"
        )
    return _next(record, pending=PendingOpen(generation=generation, nonce=nonce))


def commit_open(record: VolumeRecord, *, revision: int, nonce: str, generation: int) -> VolumeRecord:
    """The announced generation is on the disk: it becomes the committed one."""
    _only_active(record)
    if record.generation == generation > _FIRST_GENERATION and _is_repeated_commit(record, revision, nonce):
        return record
    _same_revision(record, revision)
    if record.pending != PendingOpen(generation=generation, nonce=nonce):
        raise Refused(f"generation {generation} of volume {record.volume_id} was not announced with this nonce")
    return _next(record, generation=generation, pending=None, committed_nonce=nonce)


def reset(record: VolumeRecord) -> VolumeRecord:
    """An operator ends a formatting that nobody will finish. Nothing was committed, so nothing can be lost."""
    if record.state is not VolumeState.FORMATTING:
        raise _wrong_state(record, "only a volume in state formatting can be reset")
    return _next(record, state=VolumeState.ALLOCATED, grant=None, payload_bytes=None)


def retire(record: VolumeRecord) -> VolumeRecord:
    """An operator stops the release of the secret; the secret is kept, and `reinstate` takes it back.

    An announced open stays announced: its generation may be on the disk by now. Repeating it changes nothing.
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
    # The last change is this one now; a commit from before can't be repeated any more.
    return _next(record, state=VolumeState.ACTIVE, committed_nonce=None)


def hand_over(record: VolumeRecord) -> VolumeRecord:
    """An operator gives the volume to another workload. What a guest of the old one had begun has to be begun again."""
    if record.state is VolumeState.SHREDDED:
        raise _wrong_state(record, "there is nothing left to hand over")
    return _next(record)


def shred(record: VolumeRecord) -> VolumeRecord:
    """The secret is destroyed, and with it every copy of the volume. The record stays as a tombstone."""
    if record.state is VolumeState.SHREDDED:
        return record
    if record.state in (VolumeState.ACTIVE, VolumeState.FORMATTING):
        raise _wrong_state(record, "a volume in use is retired first: sealed-local broker volume retire")
    return _next(record, state=VolumeState.SHREDDED)


def _next(record: VolumeRecord, **changes: object) -> VolumeRecord:
    return replace(record, revision=record.revision + 1, **changes)  # type: ignore[arg-type]


def _is_repeated_commit(record: VolumeRecord, revision: int, nonce: str) -> bool:
    """Whether the very last change was a commit, made from this revision with this nonce."""
    last_was_commit = record.state is VolumeState.ACTIVE and record.pending is None
    return last_was_commit and record.committed_nonce == nonce and record.revision == revision + 1


def _same_revision(record: VolumeRecord, revision: int) -> None:
    if record.revision != revision:
        raise Busy(
            f"volume {record.volume_id} changed since it was read (revision {record.revision}, not {revision}): "
            "another guest is at work; read it again"
        )


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
