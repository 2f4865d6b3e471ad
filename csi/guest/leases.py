"""Leases of this guest: taken before a volume is opened for writing, kept by a process of their own, and given back."""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from csi.core import process
from csi.core.errors import Busy, InvalidInput, LeaseLost, SealedLocalError, ToolFailed
from csi.guest.lease_note import LeaseNote, LeaseNotes, LeaseState, since_boot
from csi.guest.machine import Machine
from csi.guest.opened import Progress
from csi.guest.patience import NO_PATIENCE, Patience
from csi.guest.policy import VolumePolicy, WithoutBroker
from csi.guest.seal.mapping import mapping_name
from csi.guest.status import Notes
from csi.kbs.register import VolumeRecord

if TYPE_CHECKING:
    from csi.guest.attest.kbs_client import BrokerRegister
    from csi.guest.broker_settings import BrokerSettings

_SECRET_BYTES: Final = 32
_KERNEL_LOG: Final = Path("/dev/kmsg")
_KEEPER_ENDS_SECONDS: Final = 60.0
"""It may be cutting a volume off, with a disk that answers late."""
_LOOK_SECONDS: Final = 0.02
_OPEN_SECONDS: Final = 0.5

Start = Callable[[LeaseNote], None]
"""Starts a keeper and returns at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leases:
    """See above. `opened` has the locks of opens and closes; `start` is given by tests only."""

    machine: Machine
    notes: LeaseNotes
    opened: Notes
    start: Start | None = None

    @contextmanager
    def held(
        self,
        register: "BrokerRegister",
        broker: "BrokerSettings",
        rule: VolumePolicy,
        record: VolumeRecord,
        progress: Progress,
        *,
        supervised: bool,
        patience: Patience = NO_PATIENCE,
    ) -> Iterator[VolumeRecord]:
        """With the lease in this guest's hands and a keeper at work; answers the record as it is under the lease. Both stay
        when the volume is open at the end.

        Raises `Busy` when another guest has it for longer than the patience lasts, `LeaseLost` for a volume that is open
        here and lost its lease.
        """
        try:
            yield self._taken(register, broker, rule, record, progress, supervised=supervised, patience=patience)
        finally:
            if not self._is_open(record.volume_id):
                self.give_back(record.volume_id, progress)

    def _taken(
        self,
        register: "BrokerRegister",
        broker: "BrokerSettings",
        rule: VolumePolicy,
        record: VolumeRecord,
        progress: Progress,
        *,
        supervised: bool,
        patience: Patience,
    ) -> VolumeRecord:
        known = self._known(record.volume_id)
        if known is not None and self._is_open(record.volume_id):
            register.hold_lease(record.volume_id, known.secret)
            self.ensure_kept(known)
            return record
        self._end_keeper(record.volume_id)
        secret, instead = secrets.token_hex(_SECRET_BYTES), None if known is None else known.secret
        # It counts from before it was asked for.
        asked, taken = patience.until_free(
            lambda: (since_boot(), register.take_lease(record, secret, instead=instead)), progress
        )
        if taken.lease is None:
            raise LeaseLost(f"the broker gave no lease of volume {record.volume_id}")
        self._keep(
            LeaseNote(
                volume_id=record.volume_id,
                mount=rule.mount,
                url=broker.url,
                ca_pem=broker.ca_pem,
                timeout_seconds=broker.timeout_seconds,
                signer_pem=register.signer_pem(),
                secret=secret,
                seconds=taken.lease.seconds,
                asked=asked,
                go_on=rule.without_broker is WithoutBroker.GO_ON,
                supervised=supervised,
            )
        )
        return taken

    def _keep(self, note: LeaseNote) -> None:
        try:
            self.notes.write(note)
        except OSError:
            # Without its secret nobody could keep it, and the next try would wait for its end.
            _release(note, _say)
            raise
        self.ensure_kept(note)

    def look(self, volume_id: str) -> LeaseNote | None:
        """How it stands with a lease, with a keeper at work; None without a note that can be read."""
        try:
            note = self.notes.read(volume_id)
        except InvalidInput:
            return None
        if note is not None and note.state is not LeaseState.LOST:
            self.ensure_kept(note)
        return note

    def ensure_kept(self, note: LeaseNote) -> None:
        """See that a keeper is at work: it may have been ended for want of memory."""
        place = self.notes.take_keeper_lock(note.volume_id)
        if place is not None:
            os.close(place)
            (self.start or self.start_keeper)(note)

    def give_back(self, volume_id: str, progress: Progress) -> None:
        """The volume is closed: let the next guest in. A broker that can't be told is no failure, time does the same."""
        try:
            note = self.notes.read(volume_id)
        except InvalidInput as error:
            progress(f"{volume_id}: {error}; the lease ends by itself")
            return
        if note is None:
            return
        self._end_keeper(volume_id)
        _release(note, progress)
        self.notes.remove(volume_id)

    def _known(self, volume_id: str) -> LeaseNote | None:
        """What an earlier call left. Raises `LeaseLost` for a volume that is still open and must be closed first."""
        try:
            note = self.notes.read(volume_id)
        except InvalidInput:
            # Of a program before this one; without its secret the old lease has to run out.
            return None
        if note is not None and note.state is LeaseState.LOST and self._is_open(volume_id):
            raise LeaseLost(f"volume {volume_id} is open here and lost its lease: {note.text}")
        return note

    def _end_keeper(self, volume_id: str) -> None:
        """End the keeper: its next renewal would find another lease and take the volume from under its user."""
        ends = time.monotonic() + _KEEPER_ENDS_SECONDS
        while (place := self.notes.take_keeper_lock(volume_id)) is None:
            self.notes.ask_to_end(volume_id)
            if time.monotonic() > ends:
                raise ToolFailed(f"the process that keeps the lease of volume {volume_id} does not end")
            time.sleep(_LOOK_SECONDS)
        self.notes.ended(volume_id)
        os.close(place)

    def start_keeper(self, note: LeaseNote) -> None:
        """Start a keeper that is a copy of this process."""
        process.start_detached(lambda: self.keep_or_say(note))

    def keep_or_say(self, note: LeaseNote) -> None:
        """Be the keeper of a volume; what ends it before its time is in the kernel's log, for want of another place."""
        try:
            self.keep(note)
        except Exception as error:
            _say(f"{note.volume_id}: nobody keeps its lease: {error!r}")
            raise

    def keep(self, note: LeaseNote) -> None:
        """Be the keeper of a volume until it is closed."""
        from csi.guest.attest.lease_client import LeaseClient
        from csi.guest.keeper import Keeper, keep

        place = self.notes.take_keeper_lock(note.volume_id)
        if place is None:
            return
        # The open that it was started for goes first: the next renewal is due in a third of the lease.
        time.sleep(_OPEN_SECONDS)
        keeper = Keeper(note, self.notes, self.machine, say=_say, over=lambda: self._over(note))
        keep(keeper, LeaseClient(note), note)
        os.close(place)

    def _over(self, note: LeaseNote) -> bool:
        """Whether a keeper has nothing to do any more: it was asked to end, or the volume is closed and its lease is back.

        People close volumes by hand, and a runtime unmounts without a word.
        """
        if self.notes.is_asked_to_end(note.volume_id):
            return True
        if self._is_open(note.volume_id):
            return False
        with contextlib.suppress(Busy), self.opened.only_one(note.volume_id):
            if not self._is_open(note.volume_id):
                _release(note, _say)
                self.notes.remove(note.volume_id)
                return True
        return False

    def _is_open(self, volume_id: str) -> bool:
        return self.machine.is_mapped(mapping_name(volume_id))


def _release(note: LeaseNote, say: Progress) -> None:
    from csi.guest.attest.lease_client import LeaseClient

    client = LeaseClient(note)
    try:
        client.release()
    except SealedLocalError as error:
        say(
            f"{note.volume_id}: the broker can't be told that it is closed ({error}); it learns it within {note.seconds} s"
        )
    finally:
        client.close()


def _say(text: str) -> None:
    """To the kernel's log: there is nobody who listens."""
    with contextlib.suppress(OSError):
        _KERNEL_LOG.write_text(f"<4>sealed-local: {text}\n")
