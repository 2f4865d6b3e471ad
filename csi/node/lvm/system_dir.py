"""Folders that hold an `lvm.conf` of ours, for LVM_SYSTEM_DIR: the only settings that our LVM commands read.

LVM writes each command line into the metadata of the group that it changed, where room is short, so the settings are not on
the command line. A folder is named by what it holds: two versions of the driver that meet for a while keep their own.
"""

import hashlib
import secrets
from pathlib import Path

from csi.core import files


class SystemDirs:
    """Makes such folders below `root`, which LVM must see at the same path (it does when the host's /run is shared)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def holding(self, text: str) -> Path:
        """The folder with this text. Looked at before every command: without its file LVM would take its own defaults."""
        # A name in /dev need not be UTF-8.
        content = text.encode(errors="surrogateescape")
        folder = self._root / f"lvm-{hashlib.sha256(content).hexdigest()[:12]}"
        file = folder / "lvm.conf"
        if _read(file) != content:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _put(file, content)
        return folder


def _put(file: Path, content: bytes) -> None:
    """Threads meet here, and drivers in other containers, whose processes may have the same number: each has a name of its
    own, or one would empty the file that another has just put in place.
    """
    temporary = file.with_name(f"{secrets.token_hex(8)}.new")
    try:
        files.write_atomic(file, content, mode=0o600, temporary=temporary, durable=False)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
