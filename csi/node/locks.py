"""One operation a volume at a time. A second one waits for a moment and is refused then: callers repeat, and a queue would
hide hangs. Without the moment, the provisioner's own repeats make ordinary pods and claims show warnings.
"""

import os
import threading
import time
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

    def __init__(self, lock_file: Path | None = None, *, patience_seconds: float = 0.0) -> None:
        self._freed = threading.Condition()
        self._patience_seconds = patience_seconds
        self._held: dict[VolumeId, str] = {}
        self._lock_file = lock_file

    @contextmanager
    def hold(self, volume_id: VolumeId, operation: str) -> Iterator[None]:
        """Hold the volume's lock. Raises `Busy` naming the operation that has it and doesn't end in a moment."""
        give_up = time.monotonic() + self._patience_seconds
        with self._freed:
            while (other := self._held.get(volume_id)) is not None:
                left = give_up - time.monotonic()
                if left <= 0:
                    raise Busy(f"{other} of volume {volume_id} is still running; repeat when it has ended")
                self._freed.wait(left)
            self._held[volume_id] = operation
        try:
            with self._among_processes(volume_id):
                yield
        finally:
            with self._freed:
                del self._held[volume_id]
                self._freed.notify_all()

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
