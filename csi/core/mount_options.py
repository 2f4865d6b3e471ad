"""Mount options in words, as mount(8) and a StorageClass write them, to what mount(2) takes: flags and the rest as text.

Numbers are from linux/mount.h, meanings from mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS".
"""

from collections.abc import Iterable
from typing import Final

READ_ONLY: Final = 1
NO_SUID: Final = 1 << 1
NO_DEVICES: Final = 1 << 2
NO_EXECUTION: Final = 1 << 3
NO_ACCESS_TIMES: Final = 1 << 10
NO_DIRECTORY_ACCESS_TIMES: Final = 1 << 11
RELATIVE_ACCESS_TIMES: Final = 1 << 21

_BITS: Final = {
    "nosuid": NO_SUID,
    "nodev": NO_DEVICES,
    "noexec": NO_EXECUTION,
    "sync": 1 << 4,
    "mand": 1 << 6,
    "dirsync": 1 << 7,
    "nosymfollow": 1 << 8,
    "noatime": NO_ACCESS_TIMES,
    "nodiratime": NO_DIRECTORY_ACCESS_TIMES,
    "silent": 1 << 15,
    "relatime": RELATIVE_ACCESS_TIMES,
    "iversion": 1 << 23,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
    "ro": READ_ONLY,
}
_SETS: Final = {
    **_BITS,
    "user": NO_SUID | NO_DEVICES | NO_EXECUTION,
    "users": NO_SUID | NO_DEVICES | NO_EXECUTION,
    "owner": NO_SUID | NO_DEVICES,
    "group": NO_SUID | NO_DEVICES,
}
_CLEARS: Final = {
    "suid": NO_SUID,
    "dev": NO_DEVICES,
    "exec": NO_EXECUTION,
    "async": _BITS["sync"],
    "nomand": _BITS["mand"],
    "symfollow": _BITS["nosymfollow"],
    "atime": NO_ACCESS_TIMES,
    "diratime": NO_DIRECTORY_ACCESS_TIMES,
    "loud": _BITS["silent"],
    "norelatime": RELATIVE_ACCESS_TIMES,
    "noiversion": _BITS["iversion"],
    "nostrictatime": _BITS["strictatime"],
    "nolazytime": _BITS["lazytime"],
    "rw": READ_ONLY,
    "defaults": READ_ONLY | NO_SUID | NO_DEVICES | NO_EXECUTION | _BITS["sync"],
}
_FOR_PROGRAMS: Final = frozenset({"auto", "noauto", "nouser", "_netdev", "nofail"})
_FOR_PROGRAMS_PREFIXES: Final = ("x-", "X-", "comment=")


def split(options: Iterable[str]) -> tuple[int, str]:
    """Flags, and the filesystem's own options joined by commas. Of two words that differ the later one counts.

    Words for programs that read fstab are left out; what the kernel doesn't know it refuses itself.
    """
    flags = 0
    own: list[str] = []
    for word in (part for option in options for part in option.split(",") if part):
        if word in _SETS:
            flags |= _SETS[word]
        elif word in _CLEARS:
            flags &= ~_CLEARS[word]
        elif word not in _FOR_PROGRAMS and not word.startswith(_FOR_PROGRAMS_PREFIXES):
            own.append(word)
    return flags, ",".join(own)
