"""What is open in this guest: a note for each volume, for people who ask. Nothing is decided by it.

The folder lies on a tmpfs, beside the lock that keeps two calls for one volume apart.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from csi.core import files
from csi.core.errors import Busy
from csi.guest.machine import Machine
from csi.guest.opened import Opened, Progress
from csi.guest.seal.mapping import mapping_name

FOLDER: Final = Path("/run/sealed-local/volumes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """The notes of one guest."""

    folder: Path = FOLDER

    @contextmanager
    def only_one(self, volume_id: str) -> Iterator[None]:
        """One `open`, `close` or `run` at its ends at a time. Raises `Busy`: two would close one another's mapping."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = files.take_named_lock(self.folder / "lock", volume_id)
        if descriptor is None:
            raise Busy(f"another sealed-local opens or closes volume {volume_id} at this moment; try again")
        try:
            yield
        finally:
            os.close(descriptor)

    def remember(self, opened: Opened, progress: Progress) -> None:
        """Note an open volume. A full or read-only folder is told, and does not take the mounted volume away."""
        path = self._of(opened.volume_id)
        content = json.dumps(asdict(opened)).encode()
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            files.write_atomic(path, content, mode=0o644, temporary=path.with_suffix(".new"), durable=False)
        except OSError as error:
            progress(f"{path} can't be written ({error.strerror}); `status` won't show it")

    def forget(self, volume_id: str) -> None:
        """Remove the note of a volume; one that is not there is fine."""
        self._of(volume_id).unlink(missing_ok=True)

    def listed(self, machine: Machine) -> list[dict[str, Any]]:
        """What was noted, with `mounted` by the kernel's mounts of now."""
        targets = {mount.target for mount in machine.mounts()}
        notes = sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []
        volumes: list[dict[str, Any]] = [json.loads(note.read_text()) for note in notes]
        return [volume | {"mounted": volume["mount"] in targets} for volume in volumes]

    def _of(self, volume_id: str) -> Path:
        return self.folder / f"{mapping_name(volume_id)}.json"


def described(volume: dict[str, Any]) -> str:
    """One line of `status` for people."""
    state = "mounted" if volume["mounted"] else "NOT MOUNTED"
    lease = f", {volume['lease']}" if volume["lease"] else ""
    return (
        f"{volume['volume_id']}: {state} at {volume['mount']}, profile {volume['profile']}, "
        f"generation {volume['generation']}, freshness {volume['freshness']}{lease}"
    )
