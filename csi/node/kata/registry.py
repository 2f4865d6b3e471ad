"""Kata's registry of direct volumes on this node: whole records in, whole records out, nothing foreign in between.

Both runtimes treat a half-written record or an empty directory badly (one of them falls back to the host's directory), so
a record's directory appears and disappears by one `rename`. The temporary directory lies in the registry's root, because
in a pod the root is a mount of its own, and a name there that is not base64 of a path is looked up by nobody.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi.core.errors import AlreadyExists
from csi.core.files import write_atomic
from csi.node.kata import record as kata_record
from csi.node.kata.record import Record

DEFAULT_ROOT: Final = Path("/run/kata-containers/shared/direct-volumes")
_NEW: Final = ".sealed-local-new-"
_OLD: Final = ".sealed-local-old-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One directory of the registry. `record` is None when its file is absent or not a record."""

    target: str
    record: Record | None


class KataRegistry:
    """The registry below `root`. It is a tmpfs: a reboot empties it, and Publish writes it again."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self._root = root

    def entries(self) -> Iterator[Entry]:
        """Every record there is, this driver's and others'."""
        if not self._root.is_dir():
            return
        for directory in sorted(self._root.iterdir()):
            target = kata_record.target_path(directory.name)
            if target is not None and not directory.name.startswith("."):
                yield Entry(target=target, record=self._read(directory))

    def at(self, target: str) -> Entry | None:
        """What there is for one target path; None when nothing is."""
        if len(target.encode()) > kata_record.PATH_LIMIT_BYTES:
            return None
        directory = self._root / kata_record.directory_name(target)
        return Entry(target=target, record=self._read(directory)) if directory.is_dir() else None

    def put(self, target: str, record: Record) -> None:
        """Make the record visible, whole. One that means the same stays as it is, with the sandbox-id file that a shim may
        have put beside it; a directory without a record (left by another program) gets one.

        Raises `AlreadyExists` when there is another record.
        """
        final = self._root / kata_record.directory_name(target)
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if final.is_dir():
            self._complete(final, target, record)
            return
        fresh = self._root / (_NEW + _short(target))
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._write(fresh, record, fresh / (kata_record.FILE_NAME + ".tmp"))
        fresh.rename(final)

    def remove(self, target: str) -> None:
        """Take the record away, whole; absent is fine."""
        final = self._root / kata_record.directory_name(target)
        old = self._root / (_OLD + _short(target))
        shutil.rmtree(old, ignore_errors=True)
        if final.is_dir():
            final.rename(old)
        shutil.rmtree(old, ignore_errors=True)

    def _complete(self, final: Path, target: str, record: Record) -> None:
        present = self._read(final)
        if present is not None and not present.means(record):
            raise AlreadyExists(f"{target} has a Kata record with other content; unpublish it first")
        if present is None:
            self._write(final, record, self._root / (_NEW + _short(target) + ".json"))

    def _write(self, directory: Path, record: Record, temporary: Path) -> None:
        path = directory / kata_record.FILE_NAME
        # No flush: the registry is a tmpfs.
        write_atomic(path, kata_record.encode(record), mode=0o600, temporary=temporary, durable=False)

    @staticmethod
    def _read(directory: Path) -> Record | None:
        try:
            return kata_record.decode((directory / kata_record.FILE_NAME).read_bytes())
        except OSError:
            return None


def _short(target: str) -> str:
    return hashlib.sha256(target.encode()).hexdigest()[:32]
