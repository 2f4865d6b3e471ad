"""Whether a filesystem with a given UUID lies on a device and was ever used, by its own records. Writes nothing.

A filesystem that was made and never mounted shows that: ext4 counts mounts, and xfs's log has one record, that of mkfs.
Formats: linux/Documentation/filesystems/ext4/super.rst; fs/xfs/libxfs/xfs_format.h (struct xfs_dsb), xfs_log_format.h.
"""

import struct
from collections.abc import Callable
from typing import Final, assert_never
from uuid import UUID

from csi.core.filesystem import Filesystem

Read = Callable[[int, int], bytes]
"""So many bytes at an offset; fewer at the end of the device."""

_EXT4_SUPERBLOCK: Final = 1024
_EXT4_MAGIC: Final = 0xEF53
_XFS_MAGIC: Final = b"XFSB"
_XFS_FIRST_RECORD: Final = 1024
"""The header and the unmount record that mkfs.xfs writes, where no stripe unit stretches them."""
_CHUNK_BYTES: Final = 1 << 20
_HEAD_BYTES: Final = 4096


def holds(read: Read, filesystem: Filesystem, uuid: UUID) -> bool:
    """Whether the superblock at the beginning is one of that filesystem with that UUID."""
    head = read(0, _HEAD_BYTES)
    if len(head) < _HEAD_BYTES:
        return False
    match filesystem:
        case Filesystem.EXT4:
            return _is_ext4(head, uuid)
        case Filesystem.XFS:
            return _is_xfs(head, uuid)
        case _:
            assert_never(filesystem)


def was_used(read: Read, uuid: UUID) -> bool:
    """Whether the filesystem of that UUID is there and was mounted for writing since it was made. In doubt it was."""
    head = read(0, _HEAD_BYTES)
    if len(head) < _HEAD_BYTES:
        return False
    return _ext4_was_used(head, uuid) or _xfs_was_used(head, read, uuid)


def _ext4_was_used(head: bytes, uuid: UUID) -> bool:
    mounted_at, _, mounts = struct.unpack_from("<IIH", head, _EXT4_SUPERBLOCK + 0x2C)
    return _is_ext4(head, uuid) and (mounted_at != 0 or mounts != 0)


def _is_ext4(head: bytes, uuid: UUID) -> bool:
    superblock = head[_EXT4_SUPERBLOCK:]
    (magic,) = struct.unpack_from("<H", superblock, 0x38)
    return magic == _EXT4_MAGIC and superblock[0x68:0x78] == uuid.bytes


def _is_xfs(head: bytes, uuid: UUID) -> bool:
    return head[:4] == _XFS_MAGIC and head[32:48] == uuid.bytes


def _xfs_was_used(head: bytes, read: Read, uuid: UUID) -> bool:
    if not _is_xfs(head, uuid):
        return False
    (block_bytes,) = struct.unpack_from(">I", head, 4)
    (log_start,) = struct.unpack_from(">Q", head, 48)
    group_blocks, _, _, log_blocks = struct.unpack_from(">4I", head, 84)
    (stripe_bytes,) = struct.unpack_from(">I", head, 196)
    group_bits = head[124]
    group, block = log_start >> group_bits, log_start & ((1 << group_bits) - 1)
    begin = (group * group_blocks + block) * block_bytes
    first = max(_XFS_FIRST_RECORD, stripe_bytes)
    return _holds_anything(read, begin + first, begin + log_blocks * block_bytes)


def _holds_anything(read: Read, begin: int, end: int) -> bool:
    for offset in range(begin, end, _CHUNK_BYTES):
        wanted = min(_CHUNK_BYTES, end - offset)
        # A log that can't be read as a whole is a doubt, too.
        if read(offset, wanted) != bytes(wanted):
            return True
    return False
