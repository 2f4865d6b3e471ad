"""The broker's register of a volume: the state outside the host's reach that authorises formats and detects rollback.

absent → allocated → formatting → active ⇄ retired → shredded, changed only by compare-and-set on `revision`. The rules of
each change are in `csi.broker.rules`; this module says what a record is and what a guest may ask of a register.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from csi.core.sealed import Profile
from csi.core.secret import Secret


class VolumeState(StrEnum):
    """Where a volume is in its life, as the register knows it."""

    ALLOCATED = "allocated"
    FORMATTING = "formatting"
    ACTIVE = "active"
    RETIRED = "retired"
    SHREDDED = "shredded"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatGrant:
    """The one permission to format: it names who asked and until when the same asker may retry."""

    nonce: str
    measurement: str
    deadline_unix: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingOpen:
    """A read-write open that has begun and not yet committed: the generation it will write, and its own nonce."""

    generation: int
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """One row of the register. `header_sha256` is lower-case hex of copy A's 16 MiB; `payload_bytes` the mapped size.

    `generation` is the newest committed one. Every generation above it up to `newest_generation` was announced and never
    mounted, so the disk must show one of `generation` to `newest_generation`: an older one is a rollback, a newer one a
    forgery. A takeover always announces a *new* number: were one number announced twice, the host could keep the disk of
    the guest that died and present it later as the state that the second guest had committed.
    """

    volume_id: str
    key_version: int
    profile: Profile
    state: VolumeState
    revision: int
    """Raised by one at every change; every change names the revision it was made from (compare-and-set)."""
    grant: FormatGrant | None = None
    header_sha256: str | None = None
    payload_bytes: int | None = None
    generation: int = 0
    pending: PendingOpen | None = None
    committed_nonce: str | None = None
    """The nonce of the last commit, by which a commit whose answer was lost is recognised when it is repeated."""

    @property
    def newest_generation(self) -> int:
        """The newest generation that was ever announced, committed or not."""
        return self.generation if self.pending is None else self.pending.generation

    def next_generation(self, found: int) -> int:
        """The generation to announce by a guest that found generation `found` on the disk.

        It is above everything announced, and lies in the state record slot (generation modulo 2) that does not hold
        `found`: a torn write must never destroy the only good record.
        """
        newest = self.newest_generation
        return newest + 1 if (newest - found) % 2 == 0 else newest + 2


class Register(Protocol):
    """What an attested guest asks of the register. Every method raises `NotReleased` when the broker's policy refuses,
    `Busy` when another guest changed the record since it was read, `Refused` when the record's state forbids the change,
    and `Unavailable` when the broker can't be reached. Every method may be repeated with the same arguments when its
    answer was lost: the repeat gets the first answer, or `Busy` when the record has moved on since.
    """

    def open(self, volume_id: str, profile: Profile) -> tuple[VolumeRecord, Secret]:
        """The record (allocated at first contact, if the broker's policy allows it) and the volume's 32-byte secret."""
        ...

    def begin_format(self, record: VolumeRecord, *, nonce: str, payload_bytes: int) -> VolumeRecord:
        """Take the one permission to format; the answer is in state `formatting` with this nonce.

        A record already in `formatting` is taken over by a guest of the same measurement before its deadline: nothing
        was committed, so nothing that a tenant wrote can be lost.
        """
        ...

    def commit_format(
        self, record: VolumeRecord, *, nonce: str, header_sha256: str, payload_bytes: int
    ) -> VolumeRecord:
        """The volume is formatted and flushed: `active`, generation 1, from now on never formatted again."""
        ...

    def begin_open(self, record: VolumeRecord, *, nonce: str, generation: int) -> VolumeRecord:
        """Announce the generation that is about to be written to the disk: `record.next_generation(found on the disk)`.

        A dead guest's pending announcement is taken over; it can't be committed any more.
        """
        ...

    def commit_open(self, record: VolumeRecord, *, nonce: str, generation: int) -> VolumeRecord:
        """The generation is on the disk and flushed; only now may the volume be mounted read-write."""
        ...
