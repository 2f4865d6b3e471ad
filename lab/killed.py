"""The real driver, ended by `kill -9` at chosen moments, again and again without paying for Python's start each time.

`python -m lab.killed FOLDER node ...` imports the driver once, then waits for files `FOLDER/start`. Each holds a
moment: `1:before` or `<number>:during` a step. A child is forked that becomes the driver and dies then: a tenth of a second
into the n-th step that it carries out, or at that step's end if it is shorter. Nothing else differs from `python -m csi`; a
program that runs at that moment (lvcreate, mkfs) goes on by itself, as in a real kill. `FOLDER/pid` names the child,
`FOLDER/ended` its status.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import csi.node.main as driver
from csi.node import apply

_carry_out = apply.carry_out
_INTO_THE_STEP_SECONDS = 0.1


def die() -> None:
    """kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def become_driver(arguments: list[str], moment: str) -> int:
    """Run the driver; at the moment, no line of Python runs any more."""
    number, _, when = moment.partition(":")
    seen = 0

    def die_at(step: Any, handler: Callable[[Any], None], **how: Any) -> None:
        nonlocal seen
        seen += 1
        if str(seen) == number:
            if when == "before":
                die()
            threading.Timer(_INTO_THE_STEP_SECONDS, die).start()
        _carry_out(step, handler, **how)
        if str(seen) == number:
            die()

    apply.carry_out = die_at
    return driver.main(arguments)


def main() -> None:
    """Fork a driver for every start file, for ever."""
    folder, arguments = Path(sys.argv[1]), sys.argv[3:]
    start = folder / "start"
    while True:
        while not start.exists():
            time.sleep(0.02)
        moment = start.read_text()
        start.unlink()
        child = os.fork()
        if child == 0:
            os._exit(become_driver(arguments, moment))
        _put(folder / "pid", str(child))
        _, status = os.waitpid(child, 0)
        _put(folder / "ended", str(os.waitstatus_to_exitcode(status)))


def _put(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(path)


if __name__ == "__main__":
    main()
