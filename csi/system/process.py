"""What a process that handles keys does to itself first: no core dumps, no swap of its memory, no tracing by others."""

import ctypes
import logging
import resource
from typing import Final

_log = logging.getLogger(__name__)
_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT_AND_FUTURE: Final = 3


def harden() -> None:
    """Forbid core dumps and tracing, and lock memory where that is permitted; a refusal of the lock is only logged."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE) != 0:
        _log.info("memory can't be locked", extra={"errno": ctypes.get_errno()})
