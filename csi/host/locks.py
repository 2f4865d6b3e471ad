"""One operation a volume at a time. A second one is refused, not queued: callers repeat, and a queue would hide hangs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from csi.model.errors import Busy


class VolumeLocks:
    """Locks by volume id (for CreateVolume: by the id that the name leads to)."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[str, str] = {}

    @contextmanager
    def hold(self, volume_id: str, operation: str) -> Iterator[None]:
        """Hold the volume's lock. Raises `Busy` naming the operation that has it."""
        with self._guard:
            other = self._held.get(volume_id)
            if other is not None:
                raise Busy(f"{other} of volume {volume_id} is still running; repeat when it has ended")
            self._held[volume_id] = operation
        try:
            yield
        finally:
            with self._guard:
                del self._held[volume_id]
