"""Until when leases last: in memory, by a clock that nobody can set. See `csi.broker.leases` for who may have one.

Where several brokers give leases of one register, see `csi.broker.signs`.
"""

from collections.abc import Callable
from typing import Final, Protocol

from csi.broker.sessions import since_boot
from csi.kbs.register import Lease

_LONGEST_SECONDS: Final = 3600.0


class LeaseClock(Protocol):
    """Asked and changed within the store's transactions only."""

    def remaining(self, volume_id: str, lease: Lease, /) -> float:
        """Seconds that the lease of a volume still lasts; 0 when it is over."""

    def extend(self, volume_id: str, lease: Lease, /) -> None:
        """A sign of life: it lasts its whole length from now on."""


class Liveness:
    """When leases end, as this process has seen them renewed: for the only broker of a register."""

    def __init__(self, clock: Callable[[], float] = since_boot) -> None:
        self._clock = clock
        self._started = clock()
        self._ends: dict[str, float] = {}

    def remaining(self, _: str, lease: Lease) -> float:
        """Seconds that a lease still lasts; 0 when it is over. One that this process never saw lasts from its start."""
        ends = self._ends.get(lease.digest, self._started + lease.seconds)
        return max(0.0, ends - self._clock())

    def extend(self, _: str, lease: Lease) -> None:
        """A sign of life: it lasts its whole length from now on."""
        now = self._clock()
        self._ends.pop(lease.digest, None)
        self._ends[lease.digest] = now + lease.seconds
        if self._started + _LONGEST_SECONDS < now:
            self._forget_ended(now)

    def _forget_ended(self, now: float) -> None:
        """From now on a lease without an entry counts as over. Two at a time, the longest unheard of first, are enough."""
        for digest in list(self._ends)[:2]:
            if self._ends[digest] < now:
                del self._ends[digest]
