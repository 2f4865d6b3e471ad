"""What keeps a volume's lease while the volume is open in this guest: renews it, and stops all writing when it is lost.

The steps are here; the process that takes them is started by `csi.guest.leases`. Renewals wait for a broker in a thread of
their own, so that whatever the network does, the end of a lease is seen within a second.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from csi.core.errors import LeaseLost, SealedLocalError, Unavailable
from csi.guest.attest.lease_client import LeaseClient
from csi.guest.lease_note import LeaseNote, LeaseNotes, LeaseState, since_boot
from csi.guest.machine import Machine
from csi.guest.opened import Progress
from csi.guest.seal.mapping import mapping_name

_TICK_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Renewed:
    """The broker has heard of this guest."""

    asked: float
    seconds: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The broker says that the lease is not this guest's any more."""

    why: str


Heard = Renewed | Lost
"""What a renewal brings; one without an answer brings nothing."""


class Keeper:
    """The steps of keeping one lease."""

    def __init__(
        self,
        note: LeaseNote,
        notes: LeaseNotes,
        machine: Machine,
        *,
        say: Progress,
        over: Callable[[], bool],
        clock: Callable[[], float] = since_boot,
    ) -> None:
        """`over` tells whether the volume needs no keeper any more."""
        self._note = note
        self._notes = notes
        self._machine = machine
        self._say = say
        self._over = over
        self._clock = clock
        self._lost = ""
        """Why nothing may be written any more; empty as long as something may."""

    def hear(self, heard: Heard) -> None:
        """Take in what a renewal has brought."""
        match heard:
            case Renewed(asked=asked, seconds=seconds):
                if self._note.state is LeaseState.DOUBTFUL:
                    self._say(f"{self._note.volume_id}: the lease is renewed again")
                self._write(replace(self._note, asked=asked, seconds=seconds, state=LeaseState.HELD, text=""))
            case Lost(why=why):
                self._lost = why

    def tick(self) -> bool:
        """Look at the time and at the volume; returns whether there is anything left to keep."""
        if self._is_lost() or self._over():
            return False
        now = self._clock()
        if self._note.over(now) and not self._note.go_on:
            self._lost = (
                self._lost or "the broker could not be reached before the lease was over; another guest may have it"
            )
        if self._lost:
            self._stop()
        elif self._note.doubtful(now):
            self._doubt()
        return not self._is_lost()

    def _is_lost(self) -> bool:
        return self._note.state is LeaseState.LOST

    def _doubt(self) -> None:
        """There is time left to end in order. Who opened the volume by `run` does that; else it is made read-only."""
        note = self._note
        if note.go_on:
            self._tell(LeaseState.DOUBTFUL, "the broker can't be reached; the volume stays writable as the policy says")
        elif note.supervised:
            self._tell(LeaseState.DOUBTFUL, "the broker can't be reached, and the lease ends soon")
        elif self._made_read_only():
            self._tell(
                LeaseState.LOST,
                "the broker could not be reached, so the volume is read-only now; all that was written is on the disk. "
                "Close it and open it again",
            )
        else:
            self._tell(
                LeaseState.DOUBTFUL,
                "the broker can't be reached, and files are open for writing; when the lease is over the volume is cut off "
                "from its disk",
            )

    def _stop(self) -> None:
        """Another guest may be writing: nothing more of this one reaches the disk, and what it still held back is lost."""
        try:
            self._machine.stop_writes(mapping_name(self._note.volume_id))
        except SealedLocalError as error:
            self._tell(LeaseState.DOUBTFUL, f"{self._lost}. The volume can't be cut off from its disk yet: {error}")
            return
        self._tell(
            LeaseState.LOST,
            f"{self._lost}. Nothing more is written to the disk, and what was written last may be lost. Close it; open it "
            "again only where it should be",
        )
        self._made_read_only()

    def _made_read_only(self) -> bool:
        try:
            self._machine.make_read_only(self._note.mount)
        except SealedLocalError:
            return False
        return True

    def _tell(self, state: LeaseState, text: str) -> None:
        if (self._note.state, self._note.text) != (state, text):
            self._say(f"{self._note.volume_id}: {text}")
            self._write(replace(self._note, state=state, text=text))

    def _write(self, note: LeaseNote) -> None:
        self._note = note
        try:
            self._notes.write(note)
        except OSError as error:
            self._say(f"{note.volume_id}: the note of its lease can't be written: {error.strerror}")


def keep(keeper: Keeper, client: LeaseClient, note: LeaseNote) -> None:
    """Keep a lease until there is nothing left to keep."""
    heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
    threading.Thread(target=_renew, args=(client, note.seconds, heard.put), daemon=True).start()
    while keeper.tick():
        try:
            keeper.hear(heard.get(timeout=_TICK_SECONDS))
        except queue.Empty:
            continue


def _renew(client: LeaseClient, seconds: int, tell: Callable[[Heard], None]) -> None:
    pause = seconds / 3
    while True:
        time.sleep(pause)
        asked = since_boot()
        try:
            seconds = client.renew()
        except Unavailable:
            pause = min(_LONGEST_PAUSE_SECONDS, seconds / 12)
        except LeaseLost as error:
            client.close()
            tell(Lost(str(error)))
            return
        else:
            tell(Renewed(asked, seconds))
            pause = seconds / 3
