"""Reports of the kernel's configfs-tsm (Linux 6.7), the same for every TEE: Documentation/ABI/testing/configfs-tsm.

An entry of the folder is one question. Each is asked in an entry of its own, so that nobody else's data is in the answer;
the kernel counts what is written to an entry, and a count other than one's own makes the answer worthless.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi.core.errors import InvalidInput, Refused, Unavailable

DATA_BYTES: Final = 64
_LIMIT_BYTES: Final = 64 * 1024
"""The kernel gives at most 32 KiB."""
_WRITES: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmReport:
    """One answer. `auxiliary` is what the host gave beside it, for SEV-SNP its certificate table; mostly empty else."""

    provider: str
    evidence: bytes
    auxiliary: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tsm:
    """`tsm/report` of a mounted configfs."""

    folder: Path

    def provider(self) -> str | None:
        """Which of the kernel's drivers answers, for example `tdx_guest`; None where configfs or a driver is missing."""
        if not self.folder.is_dir():
            return None
        try:
            with self._entry() as entry:
                return _text(entry, "provider")
        except OSError as error:
            if error.errno == errno.ENXIO:  # The folder is there, and no driver behind it.
                return None
            raise Unavailable(f"{self.folder}: {error.strerror}") from error

    def report(self, data: bytes) -> TsmReport:
        """Ask for a report over `data`, filled up with zeros to 64 bytes.

        Raises `InvalidInput` for more bytes, `Unavailable` when the kernel gives none, and `Refused` when somebody else
        wrote to the entry, so that the report may be over other data.
        """
        if len(data) > DATA_BYTES:
            raise InvalidInput("report data", f"{len(data)} bytes, more than {DATA_BYTES}")
        try:
            with self._entry() as entry:
                return _asked(entry, data.ljust(DATA_BYTES, b"\0"))
        except OSError as error:
            raise Unavailable(f"the TEE gives no report: {self.folder}: {error.strerror}") from error

    @contextmanager
    def _entry(self) -> Iterator[Path]:
        entry = self.folder / f"sealed-local-{secrets.token_hex(8)}"
        entry.mkdir()
        try:
            yield entry
        finally:
            with suppress(OSError):
                entry.rmdir()


def _asked(entry: Path, data: bytes) -> TsmReport:
    descriptor = os.open(entry / "inblob", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)  # Only now does configfs hand the data to the driver.
    report = TsmReport(
        provider=_text(entry, "provider"), evidence=_bytes(entry, "outblob"), auxiliary=_auxiliary(entry)
    )
    # Read last: a write between any two of the readings has changed it.
    generation = _text(entry, "generation")
    if generation != str(_WRITES):
        raise Refused(
            f"the TEE's report has generation {generation}, not {_WRITES}: another process of this guest wrote to its "
            "entry, so it may be over other data"
        )
    return report


def _auxiliary(entry: Path) -> bytes:
    """Not every driver has the file."""
    try:
        return _bytes(entry, "auxblob")
    except FileNotFoundError:
        return b""


def _text(entry: Path, name: str) -> str:
    return _bytes(entry, name).decode("ascii", errors="replace").strip()


def _bytes(entry: Path, name: str) -> bytes:
    with (entry / name).open("rb", buffering=0) as file:
        found = bytearray()
        while part := file.read(_LIMIT_BYTES):
            found += part
            if len(found) > _LIMIT_BYTES:
                raise Refused(f"{entry / name} has more than {_LIMIT_BYTES} bytes")
        return bytes(found)
