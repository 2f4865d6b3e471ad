"""`run`: open a volume, run one interactive command with this process's own streams, close the volume."""

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType
from typing import Final

from csi.core.errors import InUse, InvalidInput, ToolFailed
from csi.guest import verbs
from csi.guest.opened import Progress
from csi.guest.verbs import Guest, Wanted

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


def run(guest: Guest, wanted: Wanted, command: Sequence[str], progress: Progress) -> int:
    """Returns the command's status. Raises `InUse` for a volume that is open already, before the command is started."""
    if not command:
        raise InvalidInput("command", "is missing; write: run --policy FILE --volume ID -- COMMAND")
    opened = verbs.open_volume(guest, wanted, progress)
    if not opened.mounted_now:
        # Who ends first would take the volume from under the other.
        raise InUse(f"volume {opened.volume_id} is open already; close it first, or start the command without run")
    try:
        return supervise(command)
    finally:
        verbs.close_volume(guest, opened.volume_id)
        progress(f"{opened.volume_id}: closed")


def supervise(command: Sequence[str]) -> int:
    """Run the command to its end and pass signals on; returns its status as a shell would (128 and the signal's number
    when a signal ended it).
    """
    try:
        child = subprocess.Popen(list(command))
    except OSError as error:
        raise ToolFailed(f"{command[0]}: can't be started: {error.strerror}") from error

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
