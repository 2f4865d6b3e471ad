"""Making, probing and checking filesystems. Nothing here decides whether a device may be formatted."""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from csi.core.command import Runner
from csi.core.errors import CommandError, InvalidInput

_PROBE_SECONDS = 60.0
_MKFS_SECONDS = 1800.0
_FSCK_SECONDS = 3600.0
_BLKID_NOTHING_FOUND = 2
_HEAD_BYTES = 4096
_FSCK_ERRORS_LEFT = 4


class Filesystem(StrEnum):
    """Filesystems that both a node and a stock Kata guest kernel can mount."""

    EXT4 = "ext4"
    XFS = "xfs"

    @classmethod
    def named(cls, name: str, field: str) -> "Filesystem":
        """The filesystem called `name`. Raises `InvalidInput` naming `field`."""
        try:
            return cls(name)
        except ValueError:
            raise InvalidInput(field, f"{name!r} is not offered; choose {' or '.join(cls)}") from None


_EXT4 = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
"""All features by name, so that neither mke2fs's version nor the machine's mke2fs.conf decides."""

_FEATURES: dict[Filesystem, tuple[str, ...]] = {
    # Fixed feature sets: a guest's kernel may be older than the node's mkfs. errors=remount-ro stops at the first damage;
    # -m 0 because a data volume needs no reserve for root.
    Filesystem.EXT4: ("-F", "-q", "-m", "0", "-e", "remount-ro", "-O", _EXT4),
    Filesystem.XFS: ("-f", "-q", "-m", "crc=1,bigtime=0,inobtcount=0"),
}


def make(runner: Runner, device: str, filesystem: Filesystem, extra: Sequence[str] = ()) -> None:
    """Format `device`. The caller has proved that nothing of value is there; this function does not look."""
    runner.run([f"mkfs.{filesystem}", *_FEATURES[filesystem], *extra, "--", device], timeout=_MKFS_SECONDS)


def signature(runner: Runner, device: str) -> str | None:
    """What blkid's low-level probe finds on `device` (`ext4`, `LVM2_member`, `dos`, ...), None when nothing.

    Any other answer than "found" or "nothing found" is an error, never "blank": a device that can't be read must not
    look empty. blkid answers "nothing found" for a missing device too, so the device is read here first.

    Raises `OSError` when the device is absent or unreadable.
    """
    with Path(device).open("rb") as file:
        file.read(_HEAD_BYTES)
    argv = ["blkid", "-p", "-o", "export", "-c", os.devnull, "--", device]
    result = runner.run(argv, timeout=_PROBE_SECONDS, ok=(0, _BLKID_NOTHING_FOUND))
    if result.returncode == _BLKID_NOTHING_FOUND:
        if result.stderr.strip():
            raise CommandError(argv, result.returncode, result.text, result.stderr.decode(errors="backslashreplace"))
        return None
    values = dict(line.split("=", 1) for line in result.text.split("\n") if "=" in line)
    return values.get("TYPE") or values.get("PTTYPE") or "unknown signature"


def check(runner: Runner, device: str, filesystem: Filesystem) -> None:
    """Repair what can be repaired without asking (ext4 journal and counters); xfs repairs its log at mount.

    Raises `CommandError` when errors are left: a person must decide, this driver never answers yes for them.
    """
    if filesystem is Filesystem.EXT4:
        runner.run(["e2fsck", "-p", "--", device], timeout=_FSCK_SECONDS, ok=range(_FSCK_ERRORS_LEFT))
