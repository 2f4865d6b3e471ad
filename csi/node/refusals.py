"""What LVM has refused a short time ago: room that its report shows and that it would not allocate isn't named again."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

_REMEMBERED_SECONDS: Final = 300.0


class Refusals:
    """The groups in which LVM refused a volume although it seemed to fit, until something is changed there or time passes.

    Kept in memory only: after a restart the group counts again, and is refused again if nothing has changed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._of: dict[str, tuple[float, str]] = {}

    def note(self, vg: str, why: str) -> None:
        """LVM refused a volume in this group."""
        with self._lock:
            self._of[vg] = (self._clock(), why)

    def forget(self, vg: str) -> None:
        """A volume was made there, or one is gone."""
        with self._lock:
            self._of.pop(vg, None)

    def now(self) -> Mapping[str, str]:
        """Groups and LVM's words."""
        oldest = self._clock() - _REMEMBERED_SECONDS
        with self._lock:
            return {vg: why for vg, (at, why) in self._of.items() if at > oldest}
