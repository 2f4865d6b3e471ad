"""Waiting for another guest to end: after one was killed, its lease still lasts for a while."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from csi.core.errors import Busy
from csi.guest.lease_note import since_boot
from csi.guest.opened import Progress

_T = TypeVar("_T")
_AGAIN_SECONDS: Final = 3.0
_LOOK_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long, in seconds, and whether somebody called the waiting off."""

    seconds: float = 0.0
    called_off: Callable[[], bool] = lambda: False

    def until_free(self, take: Callable[[], _T], progress: Progress) -> _T:
        """What `take` answers once it is not busy any more. Raises its last `Busy` when the time is over."""
        ends, told = since_boot() + self.seconds, False
        while True:
            try:
                return take()
            except Busy as busy:
                if since_boot() + _AGAIN_SECONDS > ends or self.called_off():
                    raise
                if not told:
                    progress(f"{busy}; waiting {self.seconds:g} s at most")
                told = True
            self._pause()

    def _pause(self) -> None:
        ends = since_boot() + _AGAIN_SECONDS
        while since_boot() < ends and not self.called_off():
            time.sleep(_LOOK_SECONDS)


NO_PATIENCE: Final = Patience()
