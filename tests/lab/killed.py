"""The real driver, ended by `kill -9` at a chosen moment: `python -m tests.lab.killed node ...`.

KILL_AT is `<number>:before` or `<number>:after`: the moment around the n-th step that the process carries out. Nothing else
differs from `python -m csi`; a child that runs at that moment (lvcreate, mkfs) goes on by itself, as it would in a real kill.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from csi.__main__ import main
from csi.system import apply

_number, _, _moment = os.environ["KILL_AT"].partition(":")
_carry_out = apply.carry_out
_seen = 0


def _die_at(step: Any, handler: Callable[[Any], None]) -> None:
    global _seen  # noqa: PLW0603
    _seen += 1
    if _seen == int(_number) and _moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    _carry_out(step, handler)
    if _seen == int(_number):
        os.kill(os.getpid(), signal.SIGKILL)


apply.carry_out = _die_at

if __name__ == "__main__":
    sys.exit(main())
