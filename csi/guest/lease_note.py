"""What this guest knows of the lease of a volume that it has open: one file a volume, on a tmpfs, for its owner alone."""

import os
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from csi.core import files
from csi.core.errors import InvalidInput
from csi.guest.seal.mapping import mapping_name
from csi.kbs import strict_json

_OVER: Final = 0.9
"""The guest stops this much earlier than the broker, for clocks that differ and for the time that stopping takes."""
_DOUBTFUL: Final = 2 / 3


class LeaseState(StrEnum):
    """How it stands with a lease."""

    HELD = "held"
    DOUBTFUL = "doubtful"
    """It could not be renewed for a while, and ends soon."""
    LOST = "lost"
    """Nothing more is written to the volume."""


def since_boot() -> float:
    """Seconds that go on while the machine sleeps or is stopped, as far as its kernel is told."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseNote:
    """A lease, and all that is needed to renew it."""

    volume_id: str
    mount: str
    url: str
    ca_pem: str
    timeout_seconds: float
    signer_pem: str
    """Who signs the broker's answers."""
    secret: str = field(repr=False)
    seconds: int
    asked: float
    """When its last successful renewal was asked for, by `since_boot`."""
    go_on: bool
    """The policy's word for a volume whose broker doesn't answer: it stays writable."""
    supervised: bool
    """`run` opened it and ends its command in time; nobody else has to do anything before the lease is over."""
    state: LeaseState = LeaseState.HELD
    text: str = ""
    """What a person has to know of a state that is not `held`."""

    def doubtful(self, now: float) -> bool:
        """Whether something has to be done while there is still time."""
        return now >= self.asked + self.seconds * _DOUBTFUL

    def over(self, now: float) -> bool:
        """Whether this guest may not write any more, as far as it knows."""
        return now >= self.asked + self.seconds * _OVER


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseNotes:
    """The notes of one guest, with the lock that tells whether a keeper is at work."""

    folder: Path

    def read(self, volume_id: str) -> LeaseNote | None:
        """The note of a volume; None when there is none. Raises `InvalidInput` for one that can't be read."""
        path = self._of(volume_id)
        try:
            return strict_json.decode(path.read_bytes(), LeaseNote, str(path))
        except FileNotFoundError:
            return None

    def write(self, note: LeaseNote) -> None:
        """Write a note in place of the last one."""
        path = self._of(note.volume_id)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = strict_json.encode(note)
        files.write_atomic(path, content, mode=0o600, temporary=path.with_suffix(f".{os.getpid()}"), durable=False)

    def remove(self, volume_id: str) -> None:
        """Remove a note; one that is not there is fine."""
        self._of(volume_id).unlink(missing_ok=True)

    def take_keeper_lock(self, volume_id: str) -> int | None:
        """The place of a volume's only keeper, as a descriptor; None when there is one."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return files.take_named_lock(self.folder / "keepers", volume_id)

    def ask_to_end(self, volume_id: str) -> None:
        """Ask a volume's keeper to end; it does within a moment."""
        self._end(volume_id).touch()

    def is_asked_to_end(self, volume_id: str) -> bool:
        """Whether somebody has."""
        return self._end(volume_id).exists()

    def ended(self, volume_id: str) -> None:
        """Whoever asked, and now has the keeper's lock, takes the question back."""
        self._end(volume_id).unlink(missing_ok=True)

    def told(self, volume_id: str) -> str:
        """A few words for `status`; empty without a lease."""
        try:
            note = self.read(volume_id)
        except InvalidInput as error:
            return f"lease unknown ({error})"
        if note is None:
            return ""
        if note.state is LeaseState.HELD:
            return f"lease renewed {since_boot() - note.asked:.0f} s ago, lasts {note.seconds} s"
        return f"LEASE {note.state.upper()}: {note.text}"

    def _end(self, volume_id: str) -> Path:
        return self.folder / f"{mapping_name(volume_id)}.end"

    def _of(self, volume_id: str) -> Path:
        return self.folder / f"{mapping_name(volume_id)}.json"
