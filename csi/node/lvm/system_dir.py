"""Folders that hold an `lvm.conf` of ours, for LVM_SYSTEM_DIR: the only settings that our LVM commands read.

LVM writes each command line into the metadata of the group that it changed, where room is short, so the settings are not on
the command line. A folder is named by what it holds: two versions of the driver that meet for a while keep their own.
"""

import hashlib
import os
from pathlib import Path

from csi.core import files


class SystemDirs:
    """Makes such folders below `root`, which LVM must see at the same path (it does when the host's /run is shared)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def holding(self, text: str) -> Path:
        """The folder with this text. Looked at before every command: without its file LVM would take its own defaults."""
        folder = self._root / f"lvm-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        file = folder / "lvm.conf"
        if _read(file) != text:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.write_atomic(file, text.encode(), mode=0o600, temporary=folder / f"{os.getpid()}.new", durable=False)
        return folder


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
