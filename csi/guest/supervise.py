"""Runs one interactive command with this process's own streams, and passes signals and its exit status on."""

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType
from typing import Final

from csi.core.errors import ToolFailed

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


def supervise(command: Sequence[str]) -> int:
    """Run the command to its end; answers its status as a shell would (128 and the signal's number when killed)."""
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
