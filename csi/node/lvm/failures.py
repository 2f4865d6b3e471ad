"""What a failed LVM command means, by LVM's own words. Its exit status 5 means nearly anything.

The words are those of lvm2 2.03 in the C locale (its lib/metadata/lv_manip.c, lib/format_text/format-text.c,
lib/misc/lvm-flock.c and lib/activate/activate.c).
"""

import re
from typing import Final

from csi.core.errors import CommandError, InUse, NoSpace, SealedLocalError, Unavailable

_NO_ROOM: Final = re.compile(
    "|".join(
        (
            r"nsufficient (free|suitable|contiguous)",
            r"Unable to allocate",
            r"Not enough (PVs|physical volumes)",
            r"No free extents on physical volume",
            r"Number of stripes \(\d+\) must not exceed number of physical volumes",
            r"aximum number of logical volumes \(\d+\) reached",
        )
    )
)
_METADATA_FULL: Final = re.compile(r"too large for circular buffer|exceeds maximum metadata size")
_NO_CHANGE: Final = re.compile(
    "|".join(
        (
            # A copy of one of the group's disks is there, or a disk of it can't be written.
            r"with duplicate PV devices",
            r"while PVs? (are|is) missing",
            r"Cannot (change|process|write) VG .* (PVs are missing|missing PV)",
            r"Failed to write metadata|Error writing device",
            r"is exported",
            r"Cannot access VG",
            r"read.only (VG|volume group)|has read-only permission",
        )
    ),
    re.IGNORECASE,
)
_UNSEEN: Final = re.compile(r"Volume group \"[^\"]*\" not found|Cannot process volume group|PVs are missing")
_DISK: Final = re.compile(r"Error (reading|writing) device|Failed to (write|read) metadata|Input/output error")
_BUSY: Final = re.compile(r"in use|is used by another device|Device or resource busy")
_LOCKED: Final = re.compile(
    r"Can't get lock|Couldn't get lock|lock failed|Resource temporarily unavailable", re.IGNORECASE
)


def of_allocation(vg: str, error: CommandError) -> SealedLocalError:
    """What a failed `lvcreate` means: `NoSpace` where LVM will not allocate in this group as it is now."""
    if _METADATA_FULL.search(error.stderr):
        return NoSpace(f"the metadata area of volume group {vg} is full, so it takes no further volume: {_said(error)}")
    if _NO_ROOM.search(error.stderr) or _NO_CHANGE.search(error.stderr):
        return NoSpace(f"LVM does not allocate in volume group {vg}: {_said(error)}")
    return of_change(error)


def of_change(error: CommandError) -> SealedLocalError:
    """What another failed change means; the error itself where LVM's words say nothing better."""
    if _LOCKED.search(error.stderr):
        return Unavailable(f"another LVM command holds a lock: {_said(error)}; try again later")
    if _METADATA_FULL.search(error.stderr):
        return Unavailable(
            f"the group's metadata area is full: {_said(error)}; delete a volume that nobody needs, then repeat"
        )
    if _UNSEEN.search(error.stderr):
        return Unavailable(f"LVM does not see the whole group: {_said(error)}; look at its disks, then repeat")
    if _DISK.search(error.stderr):
        return Unavailable(
            f"{error.argv[-1]}: a disk of the group answers LVM with errors: {_said(error)}; look at the kernel's log and "
            "at the disk, then repeat"
        )
    if _BUSY.search(error.stderr):
        return InUse(f"{_said(error)}; end the process or virtual machine that holds it, then repeat")
    return error


def _said(error: CommandError) -> str:
    """What LVM said, without its warnings."""
    lines = [line.strip() for line in error.stderr.splitlines()]
    reasons = [line for line in lines if line and not line.startswith("WARNING")]
    return "; ".join(reasons) or f"exit status {error.returncode}"
