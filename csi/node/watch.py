"""Repeats what a start could not complete: soon after a disk came or went, else ever more seldom.

Disks are noticed in sysfs, which costs no process and needs neither udev nor its library; their names below /dev/disk come
a moment later, so a first attempt that is too early is followed by the next one.
"""

import logging
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 60.0


def repeat(attempt: Callable[[], bool], disks: Callable[[], object], wait: Callable[[float], bool]) -> None:
    """Call `attempt` now, and again until `wait` says that the program stops.

    `attempt` returns whether nothing is left to do; then only the slow poll goes on. `disks` answers what disks there are,
    compared by equality. `wait` waits so many seconds.
    """
    pause = _TICK_SECONDS
    while True:
        seen = _carefully(disks)
        done = _carefully(attempt)
        pause = _LONGEST_SECONDS if done else pause
        waited = 0.0
        while True:
            # Disks that differ at each look must neither keep the program from its end nor make it busy.
            if wait(_TICK_SECONDS):
                return
            waited += _TICK_SECONDS
            news = _carefully(disks) != seen
            if news or waited >= pause:
                break
        pause = _TICK_SECONDS if news else min(2 * pause, _LONGEST_SECONDS)


def _carefully(look: Callable[[], object]) -> object:
    """Nothing that is met on the way may end the repetition; None then."""
    try:
        return look()
    except Exception as error:
        _log.error("an attempt failed; it is made again", exc_info=error)
        return None
