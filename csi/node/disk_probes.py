"""What lies on disks that a pool names, asked so that one which doesn't answer stops nobody: each has a thread of its own.

A frozen disk keeps its thread, and the tool that looks at it, in the kernel for as long as it is frozen. It is asked again
when they have come back, and not before: one thread and one wait a disk.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from typing import Final

from csi.core.errors import Unavailable

_PATIENCE_SECONDS: Final = 5.0


class DiskProbes:
    """Asks `look` what a device holds, never two times at once for one device."""

    def __init__(self, look: Callable[[str], str | None]) -> None:
        self._look = look
        self._late: dict[str, Future[str | None]] = {}

    def ask(self, devices: Sequence[str]) -> dict[str, str | None]:
        """What each device holds, all of them asked at the same time.

        Raises `Unavailable` when one doesn't answer, and what `look` raised.
        """
        silent = [device for device in devices if device in self._late and not self._late[device].done()]
        asked = {device: self._begin(device) for device in devices if device not in silent}
        futures.wait(asked.values(), _PATIENCE_SECONDS)
        late = {device: answer for device, answer in asked.items() if not answer.done()}
        self._late = {device: answer for device, answer in {**self._late, **late}.items() if not answer.done()}
        if silent or late:
            shown = ", ".join([*silent, *late])
            raise Unavailable(
                f"{shown} does not answer; look at the kernel's log and at the disk. It is looked at again"
            )
        return {device: answer.result() for device, answer in asked.items()}

    def _begin(self, device: str) -> "Future[str | None]":
        answer: Future[str | None] = Future()

        def work() -> None:
            try:
                answer.set_result(self._look(device))
            except Exception as error:
                answer.set_exception(error)

        try:
            threading.Thread(target=work, name="disk-probe", daemon=True).start()
        except RuntimeError as error:
            raise Unavailable(f"{device} can't be looked at: {error}") from error
        return answer
