"""Which LVs somebody was given, remembered outside LVM: a restored backup of a group's metadata brings old tags back.

A name in a folder of kubelet's directory for this driver, which outlives reboots; one for each LV, by its UUID. It only
ever forbids: without it the tags decide.
"""

import logging
import os
from pathlib import Path
from typing import Final

from csi.core import files
from csi.core.errors import ForeignContent
from csi.node.lvm.model import LogicalVolume
from csi.node.volume import State, Volume

_log = logging.getLogger(__name__)
_FOLDER: Final = "given"


class Given:
    """The memory of one driver on this node; `plugin_dir` is kubelet's directory for it."""

    def __init__(self, plugin_dir: Path) -> None:
        self._folder = plugin_dir / _FOLDER

    def require_new(self, volume: Volume) -> None:
        """Raises `ForeignContent` for a volume that is `creating` by its tags, and that somebody was given."""
        if volume.state is State.CREATING and self.knows(volume.lv):
            raise ForeignContent(
                f"volume {volume.volume_id} is new by its tags, and a pod has had it. Was an old backup of the group's "
                "metadata restored (vgcfgrestore)? Nothing is changed. See docs/node.md, Trouble, for how to keep the "
                f"data; if nobody needs it, delete the claim, or {self._folder / volume.lv.uuid}"
            )

    def knows(self, lv: LogicalVolume) -> bool:
        """Whether somebody was given the LV."""
        return bool(lv.uuid) and (self._folder / lv.uuid).exists()

    def remember(self, lv: LogicalVolume) -> None:
        """Durable when it returns. A folder that can't be written is logged: a pod must not wait for that."""
        path = self._folder / lv.uuid
        if not lv.uuid or path.exists():
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            files.flush_directory(self._folder)
        except OSError as error:
            _log.warning("can't remember that a volume was given", extra={"path": str(path), "error": str(error)})

    def forget(self, lv: LogicalVolume) -> None:
        """The LV is gone."""
        if lv.uuid:
            (self._folder / lv.uuid).unlink(missing_ok=True)
