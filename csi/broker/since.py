"""What happened to volumes between a backup and the register that it replaces. Pure: records in, findings out.

A restored register says again what it said at the backup. A guest would be allowed to format a volume that was formatted
since, and refuses the disk of a volume that was opened since. So everything that changed is held back (retired) until a
person has looked.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from csi.broker.owner import Owner
from csi.broker.rows import StoredVolume
from csi.kbs.disk_state import DiskState
from csi.kbs.register import VolumeRecord, VolumeState

CHANGES = frozenset(
    (
        "allocated",
        "format-begun",
        "formatted",
        "open-begun",
        "opened",
        "accepted",
        "handed-over",
        "reset",
        "retired",
        "reinstated",
        "shredded",
    )
)
"""Actions of the audit log that change a volume's record."""


class What(StrEnum):
    """The kinds of change that a restore undoes."""

    MADE = "made"
    FORMATTED = "formatted"
    OPENED = "opened"
    SHREDDED = "shredded"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One volume that changed. `was` is the backup's record (None: it has none), `now` that of the replaced register."""

    volume_id: str
    what: What
    was: VolumeRecord | None
    now: VolumeRecord

    def advice(self) -> str:
        """What was found, what the restore does about it, and what a person does next."""
        back = f"when it is right: sealed-local broker volume reinstate {self.volume_id}"
        match self.what:
            case What.MADE:
                return (
                    f"made since the backup; record and secret are taken over from the replaced register, held; {back}"
                )
            case What.FORMATTED:
                return f"formatted since the backup; its newer record is taken over: it isn't formatted again. Held; {back}"
            case What.SHREDDED:
                return (
                    "shredded since the backup; its secret is destroyed again. Other copies of the backup still hold it"
                )
            case What.OPENED:
                return (
                    f"opened since the backup: the register is back at generation {_generation(self.was)}, its disk may "
                    f"show up to {self.now.announced}, and guests refuse that as another branch; held. Either restore a "
                    f"newer backup, or accept what the replaced register had committed: "
                    f"{_accept(self.volume_id)}{_found(self.now)}, or put a disk of the time of the backup in its place; "
                    f"{back}"
                )
            case What.CHANGED:
                return f"{_state(self.was)} at the backup, {self.now.state} since; held; {back}"
        assert_never(self.what)


def compare(backup: Iterable[StoredVolume], replaced: Iterable[StoredVolume]) -> list[Finding]:
    """Every volume of the replaced register that differs from the backup's in more than its lease."""
    known = {stored.record.volume_id: stored for stored in backup}
    findings = []
    for stored in replaced:
        now, was = stored.record, known.get(stored.record.volume_id)
        if was is None or _apart_from_the_lease(was) != _apart_from_the_lease(stored):
            record = None if was is None else was.record
            findings.append(Finding(volume_id=now.volume_id, what=_what(record, now), was=record, now=now))
    return findings


def _apart_from_the_lease(stored: StoredVolume) -> tuple[VolumeRecord, Owner | None]:
    return replace(stored.record, lease=None, revision=1, last_nonce=None), stored.owner


def advice_by_log(volume_id: str, action: str, *, known: bool) -> str:
    """The same where only the audit log is there to tell: its last entry of a volume since the backup."""
    if not known:
        return (
            "made since the backup; its secret was in the replaced register alone, so its data is lost without that. Its "
            'id counts as unused: set allocate = "never" in the policy before guests are let in'
        )
    return (
        f"last seen since the backup: {action}; held, because its disk may be newer than the register. To look at it: "
        f"sealed-local broker volume reinstate {volume_id}, then `sealed-local guest inspect`, which changes nothing. Then "
        f"accept what the disk shows: {_accept(volume_id)}, or put a disk of the time of the backup in its place"
    )


def _what(was: VolumeRecord | None, now: VolumeRecord) -> What:
    if was is None:
        return What.MADE
    if now.state is VolumeState.SHREDDED:
        return What.SHREDDED
    if was.header_sha256 is None and now.header_sha256 is not None:
        return What.FORMATTED
    if (was.head, was.candidates, was.header_sha256) != (now.head, now.candidates, now.header_sha256):
        return What.OPENED
    return What.CHANGED


def _accept(volume_id: str) -> str:
    return f"sealed-local broker volume accept {volume_id}"


def _found(record: VolumeRecord) -> str:
    """The option that names a record's head; empty for a record without one."""
    if record.head is None or record.header_sha256 is None or record.payload_bytes is None:
        return ""
    state = DiskState(announcement=record.head, header_sha256=record.header_sha256, payload_bytes=record.payload_bytes)
    return f" --found {state} --reason TEXT"


def _generation(record: VolumeRecord | None) -> int:
    return 0 if record is None else record.generation


def _state(record: VolumeRecord | None) -> str:
    return "unknown" if record is None else str(record.state)
