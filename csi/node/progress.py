"""How far a volume's erasing has come, kept for the next process of the driver, not for the next boot.

A note counts for exactly one erasing (LV, ranges) in one boot of the node; anything else, and any doubt, means the
beginning. What it names was flushed before it was written.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from csi.core import files
from csi.node.lvm.model import LogicalVolume
from csi.node.plan.erase import ErasingStep

_log = logging.getLogger(__name__)
_SUFFIX: Final = ".json"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The kernel's name of this boot."""
    return _BOOT_ID.read_text().strip()


def sweep(folder: Path, kept: Iterable[LogicalVolume]) -> None:
    """Drop the notes of LVs that are gone. One that is dropped too early costs work and nothing else. What isn't a note
    stays: another name may be a note that is just being written.
    """
    names = {_file_name(lv) for lv in kept}
    for path in folder.glob(f"*{_SUFFIX}"):
        if path.name not in names and path.is_file():
            _unlink(path)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("an old note of progress stays", extra={"path": str(path), "error": str(error)})


class Note:
    """One erasing's note in a folder; an LV whose UUID nobody knows has none."""

    def __init__(self, folder: Path, lv: LogicalVolume, erasing: tuple[ErasingStep, ...], boot_id: str) -> None:
        self._folder = folder
        self._path = folder / _file_name(lv)
        told = [lv.uuid, boot_id, *(step.describe() for step in erasing)]
        self._failed = False
        self._key = hashlib.sha256(json.dumps(told).encode()).hexdigest() if lv.uuid else None

    def read(self) -> int:
        """The bytes that are erased and flushed; 0 in doubt."""
        try:
            held = json.loads(self._path.read_text())
            done = held["done_bytes"] if self._key is not None and held["erasing"] == self._key else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return done if isinstance(done, int) and done >= 0 else 0

    def write(self, done_bytes: int) -> None:
        """Note so many bytes. Where that can't be done (a full disk) it is logged, once: the erasing must not wait for it,
        and whoever goes on begins where the last note says.
        """
        if self._key is None:
            return
        text = json.dumps({"erasing": self._key, "done_bytes": done_bytes}).encode()
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            # Not durable: after a reboot it counts for nothing anyway.
            files.write_atomic(self._path, text, mode=0o600, temporary=self._path.with_suffix(".new"), durable=False)
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.warning("progress can't be noted", extra={"path": str(self._path), "error": str(error)})
            self._failed = True

    def drop(self) -> None:
        """There is nothing to go on with any more."""
        _unlink(self._path)


def _file_name(lv: LogicalVolume) -> str:
    return f"{lv.vg}-{lv.name}{_SUFFIX}"
