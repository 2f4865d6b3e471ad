"""The broker's register of a volume: the state outside the host's reach that authorises formats and detects rollback.

absent → allocated → formatting → active ⇄ retired → shredded, changed only by compare-and-set on `revision`. The rules of
each change are in `csi.broker.rules`; this module says what a record is and what a guest may ask of a register.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Protocol

import msgspec

from csi.core.sealed import PAYLOAD_BLOCK_BYTES, Profile
from csi.core.secret import Secret
from csi.kbs.claim_name import UNNAMED, ClaimName


class VolumeState(StrEnum):
    """Where a volume is in its life, as the register knows it."""

    ALLOCATED = "allocated"
    FORMATTING = "formatting"
    ACTIVE = "active"
    RETIRED = "retired"
    SHREDDED = "shredded"


Nonce = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""32 random bytes in hex, chosen by a guest for one change of the register."""
Epoch = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""16 random bytes in hex: one life of the register. A restored register has another one."""
Revision = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
Generation = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
PayloadBytes = Annotated[int, msgspec.Meta(ge=PAYLOAD_BLOCK_BYTES, multiple_of=PAYLOAD_BLOCK_BYTES, le=2**62)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

LeaseSeconds = Annotated[int, msgspec.Meta(ge=5, le=3600)]
"""How long a lease lasts that is not renewed."""

MOST_CANDIDATES = 32
"""So many announcements in a row that nobody committed; then a person looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """Which open wrote a state of the volume. The three together are never announced twice: within one epoch the numbers
    only rise, and whatever a restored register announces again has another epoch and another nonce.
    """

    generation: Generation
    nonce: Nonce
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatGrant:
    """The one permission to format: it names who asked and until when the same asker may retry. What the format writes is
    generation 1 under this nonce and epoch.
    """

    nonce: Nonce
    measurement: str
    deadline_unix: int
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A person's word that another state than the register's head is the volume's from now on."""

    at_unix: int
    was: Announcement | None
    now: Announcement
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who alone may write to a volume: the guest that knows the 32 bytes of which `digest` is the SHA-256.

    Until when it counts is not in the register: a time of day could be set. The broker counts from the last sign of life.
    """

    digest: Sha256
    holder: Annotated[str, msgspec.Meta(max_length=64)]
    """The thumbprint of the guest's key, for people."""
    seconds: LeaseSeconds
    revoked: bool = False
    """A person decided against the holder. It can't renew any more; nobody else gets in before its time is up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """One row of the register. `header_sha256` is the header's digest (`csi.core.header_digest`) in lower-case hex;
    `payload_bytes` the mapped size.

    A disk is the volume's when the newest state record on it was written under `head` or under one of `candidates`. The
    number alone says nothing: after a restore of the register the same number is announced once more, for another branch.
    A takeover always announces anew: were one announcement made twice, the host could keep the disk of the guest that died
    and present it later as the state that the second guest had committed.
    """

    volume_id: str
    key_version: Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
    profile: Profile
    state: VolumeState
    revision: Revision
    """Raised by one at every change; every change names the revision it was made from (compare-and-set)."""
    grant: FormatGrant | None = None
    header_sha256: Sha256 | None = None
    payload_bytes: PayloadBytes | None = None
    announced: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    """The highest generation that was ever announced. It only rises, whatever is committed or accepted."""
    head: Announcement | None = None
    """What was committed last, or accepted by a person."""
    candidates: Annotated[tuple[Announcement, ...], msgspec.Meta(max_length=MOST_CANDIDATES)] = ()
    """Announced since `head` and not committed, oldest first: each may be on the disk, by a guest that died."""
    last_nonce: Nonce | None = None
    """The nonce of the last change if a guest made it, by which it is recognised when it is repeated."""
    accepted: tuple[Accepted, ...] = ()
    unwritten: bool = False
    """`head` is a person's word that the disk's records can't be read: no disk shows it before a guest's `repair`."""
    lease: Lease | None = None

    @property
    def generation(self) -> int:
        """The committed generation; 0 before the first commit."""
        return 0 if self.head is None else self.head.generation

    def knows(self, announcement: Announcement) -> bool:
        """Whether a disk that was written under this announcement may be opened."""
        return announcement == self.head or announcement in self.candidates


class Register(Protocol):
    """What an attested guest asks of the register. Every method raises `NotReleased` when the broker's policy refuses,
    `Busy` when another guest changed the record since it was read, `Refused` when the record's state forbids the change,
    and `Unavailable` when the broker can't be reached. Every method may be repeated with the same arguments when its
    answer was lost: the repeat gets the first answer, or `Busy` when the record has moved on since.
    """

    def open(self, volume_id: str, profile: Profile, used_as: ClaimName = UNNAMED) -> tuple[VolumeRecord, Secret]:
        """The record (allocated at first contact, if the broker's policy allows it) and the volume's 32-byte secret.

        `used_as` has to be the owner's, as far as the owner has names, and stand in the guest's measured policy.
        """
        ...

    def begin_format(self, record: VolumeRecord, *, nonce: str, payload_bytes: int) -> tuple[VolumeRecord, Secret]:
        """Take the one permission to format; the answer is in state `formatting` with this nonce. Beside it come 32 random
        bytes for the volume's key, which the register keeps nowhere: a repeat gets others.

        A record already in `formatting` is taken over by a guest of the same measurement before its deadline: nothing
        was committed, so nothing that a tenant wrote can be lost.
        """
        ...

    def commit_format(self, record: VolumeRecord, *, nonce: str, header: bytes, payload_bytes: int) -> VolumeRecord:
        """The volume is formatted and flushed: `active`, generation 1, from now on never formatted again.

        The register keeps a copy of the header, from which `header` gives it back.
        """
        ...

    def header(self, record: VolumeRecord) -> bytes:
        """The header copy that the record's digest is of. Raises `NotFound` when the register keeps none."""
        ...

    def begin_open(self, record: VolumeRecord, *, nonce: str, generation: int) -> VolumeRecord:
        """Announce the generation that is about to be written to the disk: `record.announced + 1`. The answer's last
        candidate is this announcement. An earlier one that nobody committed can't be committed any more.
        """
        ...

    def commit_open(self, record: VolumeRecord, *, nonce: str, generation: int) -> VolumeRecord:
        """The generation is on the disk and flushed; only now may the volume be mounted read-write."""
        ...
