"""Who may use a broker's directory at one time: everybody together, or one restore alone.

The database itself takes turns between processes. What it can't know is that its file is being replaced: a program that had
the old file open would go on with it, and guests would have two registers.
"""

import fcntl
import os
from pathlib import Path

from csi.core.errors import Busy

_NAME = "in-use.lock"


def together(root: Path) -> int:
    """Use the directory beside others; raises `Busy` during a restore. The descriptor, until closed, holds the place."""
    return _take(root, fcntl.LOCK_SH, "a restore is at work")


def alone(root: Path) -> int:
    """Use the directory alone; raises `Busy` while a broker or a command uses it."""
    return _take(root, fcntl.LOCK_EX, "a broker or a command uses it; stop that first")


def _take(root: Path, kind: int, otherwise: str) -> int:
    descriptor = os.open(root / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Busy(f"{root}: {otherwise}") from error
    return descriptor
