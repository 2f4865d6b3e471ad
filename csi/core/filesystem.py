"""The filesystems that are offered, and all that differs between them. Runs nothing: `csi.core.filesystems` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

from csi.core import mkfs_options
from csi.core.errors import InvalidInput
from csi.core.size import MIB


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
            raise InvalidInput(field, f"{name!r} is not offered; use {' or '.join(cls)}") from None


DEFAULT: Final = Filesystem.EXT4
"""What a volume gets when neither its class nor the request names a filesystem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A tool that repairs, without asking, what it can before a mount. `ok` are the exit statuses that leave no error."""

    words: tuple[str, ...]
    ok: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Grow:
    """A tool that makes the filesystem as large as its device. `mounted`: it wants the mount point, not the device."""

    words: tuple[str, ...]
    mounted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What has to be known of one filesystem."""

    smallest_bytes: int
    """The smallest size that its mkfs makes a sound filesystem of."""
    make: tuple[str, ...]
    """Command that formats; more options and the device follow."""
    uuid_option: tuple[str, str]
    """Option of its mkfs that takes a UUID, and what stands before the UUID in its value."""
    options: Mapping[str, mkfs_options.Rule]
    """Which options of its mkfs a class may give, by letter."""
    check: Check | None
    """None where the kernel repairs at mount."""
    grow: Grow


_EXT4_FEATURES: Final = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
"""All features by name, so that neither mke2fs's version nor the machine's mke2fs.conf decides."""

_EXT4: Final = Traits(
    # Below 2048 blocks of 1 KiB mke2fs leaves the journal out, says so, and ends well: nothing would survive a crash.
    smallest_bytes=2 * MIB,
    # Fixed feature sets: a guest's kernel may be older than the node's mkfs. errors=remount-ro stops at the first damage;
    # -m 0 because a data volume needs no reserve for root.
    make=("mkfs.ext4", "-F", "-q", "-m", "0", "-e", "remount-ro", "-O", _EXT4_FEATURES),
    uuid_option=("-U", ""),
    options=mkfs_options.EXT4,
    check=Check(words=("e2fsck", "-p"), ok=range(4)),
    grow=Grow(words=("resize2fs",), mounted=False),
)
_XFS: Final = Traits(
    smallest_bytes=300 * MIB,  # mkfs.xfs itself refuses less
    make=("mkfs.xfs", "-f", "-q", "-m", "crc=1,bigtime=0,inobtcount=0"),
    uuid_option=("-m", "uuid="),
    options=mkfs_options.XFS,
    check=None,
    grow=Grow(words=("xfs_growfs",), mounted=True),
)


def traits(filesystem: Filesystem) -> Traits:
    """All that differs between filesystems: the one place that has to know every one of them."""
    match filesystem:
        case Filesystem.EXT4:
            return _EXT4
        case Filesystem.XFS:
            return _XFS
        case _:
            assert_never(filesystem)


def make_options(words: Sequence[str], filesystem: Filesystem, field: str) -> tuple[str, ...]:
    """Options of a class for the filesystem's mkfs, each value a word of its own.

    Raises `InvalidInput` naming `field` for one that could reach another device or a file, force, make something else than
    this filesystem on all of its device, or is not known.
    """
    try:
        return mkfs_options.parse(words, traits(filesystem).options)
    except ValueError as problem:
        raise InvalidInput(field, f"for {filesystem}: {problem}") from None
