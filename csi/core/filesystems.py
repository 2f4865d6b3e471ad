"""Making, probing and checking filesystems. Nothing here decides whether a device may be formatted."""

import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from uuid import UUID

from csi.core import block_probe
from csi.core.command import Result, Runner
from csi.core.errors import CommandError, DiskFailed, InUse
from csi.core.filesystem import Filesystem, make_options, traits

_PROBE_SECONDS = 60.0
_MKFS_SECONDS = 1800.0
_FSCK_SECONDS = 3600.0
_BLKID_NOTHING_FOUND = 2
_BLKID_AMBIVALENT = 8
_HEAD_BYTES = 4096
_DISK_ERROR = os.strerror(errno.EIO)
"""What all these tools print of the kernel's answer."""
_IN_USE = (" is in use", " is mounted")
"""What e2fsck says then (misc/util.c of e2fsprogs); its status 8 means other failures, too."""


def make(
    runner: Runner, device: str, filesystem: Filesystem, extra: Sequence[str] = (), uuid: UUID | None = None
) -> None:
    """Format `device`, with that UUID unless the options ask for another. The caller has proved that nothing of value is
    there; this function does not look.

    Raises `InvalidInput` for options that are not allowed for this filesystem: what was checked for another one, or by an
    older version, must not reach the tool. Raises `DiskFailed` when the disk answers the tool with errors.
    """
    options = make_options(extra, filesystem, "mkfsOptions")
    word, before = traits(filesystem).uuid_option
    own = (word, f"{before}{uuid}") if uuid is not None else ()
    _run(runner, device, [*traits(filesystem).make, *own, *options, "--", device], _MKFS_SECONDS)


def signature(runner: Runner, device: str) -> str | None:
    """What blkid's low-level probe finds on `device` (`ext4`, `LVM2_member`, `dos`, ...), None when nothing.

    Any other answer than "found" or "nothing found" is an error, never "blank": a device that can't be read must not
    look empty. blkid answers "nothing found" for a missing device too, so the device is read here first. A blank
    partition that is meant for something else than data doesn't count as blank.

    Raises `DiskFailed` when the device answers with errors, and `OSError` when it is absent.
    """
    _read_head(device)
    argv = ["blkid", "-p", "-o", "export", "-c", os.devnull, "--", device]
    result = _run(runner, device, argv, _PROBE_SECONDS, ok=(0, _BLKID_NOTHING_FOUND, _BLKID_AMBIVALENT))
    if result.returncode == _BLKID_AMBIVALENT:
        return "signatures of more than one kind"
    if result.returncode == _BLKID_NOTHING_FOUND:
        if result.stderr.strip():
            raise CommandError(argv, result.returncode, result.text, result.stderr.decode(errors="backslashreplace"))
        return None
    return block_probe.found(result.text)


def check(runner: Runner, device: str, filesystem: Filesystem) -> None:
    """Repair what can be repaired without asking (ext4 journal and counters); xfs repairs its log at mount.

    Raises `CommandError` when errors are left: a person must decide, this driver never answers yes for them; and `InUse`
    when the tool could not look, as something else has the device. Raises `DiskFailed` as `make` does.
    """
    tool = traits(filesystem).check
    if tool is None:
        return
    try:
        _run(runner, device, [*tool.words, "--", device], _FSCK_SECONDS, ok=tool.ok)
    except CommandError as error:
        if any(words in error.stdout + error.stderr for words in _IN_USE):
            raise InUse(
                f"{device} is in use by another program or mapping; end that, then the call is repeated"
            ) from error
        raise


def _read_head(device: str) -> None:
    try:
        with Path(device).open("rb") as file:
            file.read(_HEAD_BYTES)
    except OSError as error:
        if error.errno == errno.EIO:
            raise DiskFailed(device, "can't be read", error) from error
        raise


def _run(runner: Runner, device: str, argv: Sequence[str], seconds: float, ok: Collection[int] = (0,)) -> Result:
    """Run a tool on a device; an error of the disk that the tool tells of is not the tool's."""
    try:
        return runner.run(argv, timeout=seconds, ok=ok)
    except CommandError as error:
        if _DISK_ERROR in error.stdout + error.stderr:
            raise DiskFailed(device, f"can't be read or written by {argv[0]}", _DISK_ERROR) from error
        raise
