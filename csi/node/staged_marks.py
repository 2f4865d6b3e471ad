"""Which volumes of guests are staged: they have no mount that would show it, and DeleteVolume must not take one away.

One file a volume below the state directory, holding the staging path. A reboot empties it, as it ends every stage.
"""

from pathlib import Path

from csi.core import files
from csi.node.lvm.names import VolumeId


class StagedMarks:
    """The marks below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, volume_id: VolumeId, staging_path: str) -> None:
        """Say that the volume is staged."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self._folder / volume_id
        content = staging_path.encode()
        files.write_atomic(place, content, mode=0o600, temporary=self._folder / f"{volume_id}~", durable=False)

    def remove(self, volume_id: VolumeId) -> None:
        """Say that it is not; absent is fine."""
        (self._folder / volume_id).unlink(missing_ok=True)

    def path_of(self, volume_id: VolumeId) -> str | None:
        """Where the volume is staged; None when it isn't."""
        try:
            return (self._folder / volume_id).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
