"""What `blkid -p -o export` says of a device: text to a word for what is there, or None for nothing. Format: blkid(8).

Beside what it found in a device's content, blkid prints what it knows of the device itself: its name, its block sizes, and
for a partition the entry in the partition table (`PART_ENTRY_...`). Only the first kind is a signature.
"""

from typing import Final

_ABOUT_THE_DEVICE: Final = frozenset(
    {
        "DEVNAME", "BLOCK_SIZE", "MINIMUM_IO_SIZE", "OPTIMAL_IO_SIZE", "ALIGNMENT_OFFSET", "PHYSICAL_SECTOR_SIZE",
        "LOGICAL_SECTOR_SIZE", "DISKSEQ", "DAX",
    }
)  # fmt: skip
_ENTRY: Final = "PART_ENTRY_"
_ENTRY_TYPE: Final = "PART_ENTRY_TYPE"

_FOR_DATA: Final = frozenset(
    {
        "0x83", "0fc63daf-8483-4772-8e79-3d69d8477de4",  # Linux data
        "0x8e", "e6d6d379-f507-44c2-a23c-238f2a3df928",  # Linux LVM
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7",  # basic data: what older tools gave every partition of a GPT
    }
)  # fmt: skip
"""Types of partitions that are free for data when they are blank. Every other type says that firmware, a boot loader, an
array, swap or another system is to use the partition, perhaps without a signature, or that it holds further partitions."""


def found(text: str) -> str | None:
    """What the device holds (`ext4`, `LVM2_member`, `dos`, ...), or why it must not be taken for blank; None when blank."""
    values = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
    content = values.get("TYPE") or values.get("PTTYPE")
    if content is not None:
        return content
    unknown = sorted(key for key in values if key not in _ABOUT_THE_DEVICE and not key.startswith(_ENTRY))
    if unknown:
        return f"unknown signature ({', '.join(unknown)})"
    kind = values.get(_ENTRY_TYPE, "none" if any(key.startswith(_ENTRY) for key in values) else None)
    if kind is None or kind.lower() in _FOR_DATA:
        return None
    return (
        f"no content, but its partition type {kind} is for another use (set it to Linux LVM if the partition is free)"
    )
