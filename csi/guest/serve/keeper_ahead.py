"""A lease's keeper that is there before there is a lease, so that an unlock doesn't wait for a copy of its process."""

import os
from typing import Final

from csi.core import process
from csi.guest.lease_note import LeaseNote
from csi.guest.leases import Leases

_STANDARD_INPUT: Final = 0
_MOST_BYTES: Final = 4096


class KeeperAhead:
    """Waits for the name of a volume, or ends with the process that made it."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        reader, self._writer = os.pipe()
        process.start_detached(lambda: _keep_when_told(leases), told_by=reader)
        os.close(reader)

    def start(self, note: LeaseNote) -> None:
        """Have it keep the lease that was noted. It keeps one: for the next, and where it is gone, another is started."""
        writer, self._writer = self._writer, -1
        try:
            os.write(writer, note.volume_id.encode())
        except OSError:
            self._leases.start_keeper(note)
            return
        os.close(writer)


def _keep_when_told(leases: Leases) -> None:
    volume_id = os.read(_STANDARD_INPUT, _MOST_BYTES).decode()
    if not volume_id:
        return
    process.harden()
    note = leases.notes.read(volume_id)
    if note is not None:
        leases.keep_or_say(note)
