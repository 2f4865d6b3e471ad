"""Until when leases last where several brokers give them: by signs of life in the register, and no clock that is shared.

Each renewal writes a new random sign. A broker counts a lease's length, by its own clock, from when it first saw the
present sign. So it never counts from before the guest asked, and a lease that it gives to somebody else was renewed
nowhere for its whole length. A sign that another server of the database shows is a new one: that server may be behind.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from csi.broker.database import Rows
from csi.broker.sessions import since_boot
from csi.kbs.register import Lease

_SIGN_BYTES = 16
_READ = "SELECT sign, pg_postmaster_start_time()::text FROM signs WHERE volume_id = ? AND lease = ?"
_WRITE = (
    "INSERT INTO signs VALUES (?, ?, ?) ON CONFLICT (volume_id) DO UPDATE SET lease = excluded.lease, sign = excluded.sign "
    "RETURNING sign, pg_postmaster_start_time()::text"
)


@dataclass(frozen=True, slots=True)
class _Seen:
    lease: str
    sign: object
    """As it was read, with the start of the server that showed it; None where there was none."""
    ends: float


class Signs:
    """See `csi.broker.liveness.LeaseClock`. One entry in memory for each volume whose lease was asked for here."""

    def __init__(self, here: Callable[[], Rows], clock: Callable[[], float] = since_boot) -> None:
        """`here` answers the transaction that the asking thread is in."""
        self._here = here
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}

    def remaining(self, volume_id: str, lease: Lease) -> float:
        """Seconds that a lease still lasts, as far as this broker can tell; 0 when it is over."""
        sign = self._here().execute(_READ, (volume_id, lease.digest)).fetchone()
        now = self._clock()
        with self._lock:
            seen = self._seen.get(volume_id)
            if seen is None or (seen.lease, seen.sign) != (lease.digest, sign):
                seen = self._seen[volume_id] = _Seen(lease.digest, sign, now + lease.seconds)
        return max(0.0, seen.ends - now)

    def extend(self, volume_id: str, lease: Lease) -> None:
        """A sign of life: it lasts its whole length from now on, if the transaction is stored."""
        now = self._clock()
        sign = self._here().execute(_WRITE, (volume_id, lease.digest, os.urandom(_SIGN_BYTES).hex())).fetchone()
        with self._lock:
            self._seen[volume_id] = _Seen(lease.digest, sign, now + lease.seconds)
