"""One operation a volume at a time. A second one is refused, not queued: callers repeat, and a queue would hide hangs."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi.core import files
from csi.core.errors import Busy
from csi.node.lvm.names import VolumeId


class VolumeLocks:
    """Locks by volume id (for CreateVolume: by the id that the name leads to).

    `lock_file` keeps two driver processes apart, too, as an update may leave the old one running for a while: with a look
    from before the other's work one could prepare a volume that is in use by now.
    """

    def __init__(self, lock_file: Path | None = None) -> None:
        self._guard = threading.Lock()
        self._held: dict[VolumeId, str] = {}
        self._lock_file = lock_file

    @contextmanager
    def hold(self, volume_id: VolumeId, operation: str) -> Iterator[None]:
        """Hold the volume's lock. Raises `Busy` naming the operation that has it."""
        with self._guard:
            other = self._held.get(volume_id)
            if other is not None:
                raise Busy(f"{other} of volume {volume_id} is still running; repeat when it has ended")
            self._held[volume_id] = operation
        try:
            with self._among_processes(volume_id):
                yield
        finally:
            with self._guard:
                del self._held[volume_id]

    @contextmanager
    def _among_processes(self, volume_id: VolumeId) -> Iterator[None]:
        if self._lock_file is None:
            yield
            return
        descriptor = files.take_named_lock(self._lock_file, volume_id)
        if descriptor is None:
            raise Busy(f"another driver process works on volume {volume_id}; repeat when it has ended")
        try:
            yield
        finally:
            os.close(descriptor)
