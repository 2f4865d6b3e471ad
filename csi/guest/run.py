"""`run`: open a volume, run one interactive command with this process's own streams, close the volume."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, Final, Self

from csi.core.errors import InUse, InvalidInput, LeaseLost, ToolFailed
from csi.guest import verbs
from csi.guest.lease_note import LeaseNote, LeaseState
from csi.guest.opened import Progress
from csi.guest.verbs import Guest, Wanted

_ENDS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PASSED_ON: Final = (*_ENDS, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
_LOOK_MILLISECONDS: Final = 500
_GRACE_SECONDS: Final = 10.0

Look = Callable[[], LeaseNote | None]
"""How it stands with the volume's lease; None where there is none."""


def run(guest: Guest, wanted: Wanted, command: Sequence[str], progress: Progress) -> int:
    """Returns the command's status. Raises `InUse` for a volume that is open already, before the command is started, and
    `LeaseLost` when the command was ended because the volume may not be written any more.

    A signal to end that comes while the volume is being opened lets that come to its end, closes the volume and starts no
    command.
    """
    if not command:
        raise InvalidInput("command", "is missing; write: run --policy FILE --volume ID -- COMMAND")
    with Signals() as signals:
        patience = replace(wanted.patience, called_off=lambda: signals.end() is not None)
        opened = verbs.open_volume(guest, replace(wanted, patience=patience), progress, supervised=True)
        if not opened.mounted_now:
            # Who ends first would take the volume from under the other.
            raise InUse(f"volume {opened.volume_id} is open already; close it first, or start the command without run")
        trouble = Trouble(lambda: guest.leases().look(opened.volume_id), progress)
        try:
            status = supervise(command, trouble, signals)
        finally:
            _close(guest, opened.volume_id, trouble, progress)
    if trouble.text:
        raise LeaseLost(f"volume {opened.volume_id}: {trouble.text}. The command was ended")
    return status


class Trouble:
    """Whether the command has to end because of the volume's lease."""

    def __init__(self, look: Look, progress: Progress) -> None:
        self._look = look
        self._progress = progress
        self._since: float | None = None
        self.text = ""

    def signal(self) -> signal.Signals | None:
        """What the command gets now: SIGTERM when it has to end, SIGKILL if it has not ended long after that."""
        note = self._look()
        if note is None or note.state is LeaseState.HELD or (note.go_on and note.state is LeaseState.DOUBTFUL):
            return None
        if note.text != self.text:
            self._progress(f"{note.volume_id}: {note.text}")
        first, self.text = not self.text, note.text
        if note.state is LeaseState.LOST:
            self._since = self._since or time.monotonic()
            if time.monotonic() > self._since + _GRACE_SECONDS:
                return signal.SIGKILL
        return signal.SIGTERM if first else None


class Signals:
    """What this process is told, for its command. Caught from the first moment on: as a container's first process it would
    never see one that came before it listens, and the container's end would be a kill with the volume open.
    """

    def __init__(self) -> None:
        self._early: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._got) for number in _PASSED_ON}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _got(self, number: int, _frame: FrameType | None) -> None:
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)

    def end(self) -> int | None:
        """The signal to end that came before there was a command, if one did."""
        return next((number for number in self._early if number in _ENDS), None)

    def pass_on_to(self, child: "subprocess.Popen[bytes]") -> None:
        """From now on they go to the command, with those that came while it was being started."""
        self._child = child
        for number in self._early:
            child.send_signal(number)


def supervise(command: Sequence[str], trouble: Trouble, signals: Signals) -> int:
    """Run the command to its end; returns its status as a shell would (128 and the signal's number when a signal ended it,
    or came before it was started).
    """
    if (number := signals.end()) is not None:
        return 128 + number
    try:
        child = subprocess.Popen(list(command))
    except OSError as error:
        raise ToolFailed(f"{command[0]}: can't be started: {error.strerror}") from error
    signals.pass_on_to(child)
    _wait(child, trouble)
    status = child.wait()
    return status if status >= 0 else 128 - status


def _wait(child: "subprocess.Popen[bytes]", trouble: Trouble) -> None:
    descriptor = os.pidfd_open(child.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(_LOOK_MILLISECONDS):
            number = trouble.signal()
            if number is not None:
                child.send_signal(number)
    finally:
        os.close(descriptor)


def _close(guest: Guest, volume_id: str, trouble: Trouble, progress: Progress) -> None:
    """A volume that was cut off can't be closed without loss, which is known then and told at the end."""
    try:
        verbs.close_volume(guest, volume_id, progress)
    except ToolFailed as error:
        if not trouble.text:
            raise
        progress(str(error))
    progress(f"{volume_id}: closed")
