"""An unlock through a resident `guest serve`, timed where the agent waits for it. Runs in the node."""

import os
import re
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path

from lab.kata_agent import Caller

PHASES = {
    "the broker released": "attest, and get key and record",
    "the header is authentic": "verify the head, announce, map",
    "mounted at": "check the filesystem, mount",
    "is committed": "commit to the register",
}
"""What was done when a line of the worker's log has these words."""
_LINE = re.compile(r"\[ *([\d.]+) s\] (.*)")


def wait(socket: str, seconds: float = 60) -> None:
    """Wait until the front listens."""
    give_up = time.monotonic() + seconds
    while not Path(socket).exists():
        if time.monotonic() > give_up:
            raise TimeoutError(socket)
        time.sleep(0.02)


def mount(socket: str, device: str, place: str) -> float:
    """Seconds from the request to the answer."""
    Path(place).mkdir(parents=True, exist_ok=True)
    caller = Caller(Path(socket))
    started = time.monotonic()
    status = caller.secure_mount(*_numbered(device, place)).status
    seconds = time.monotonic() - started
    caller.socket.close()
    if status.code != 0:
        raise RuntimeError(status.message)
    return seconds


def end(place: str, seconds: float = 60) -> None:
    """Unmount, and wait until the volume is closed."""
    subprocess.run(["umount", place], check=True)
    give_up = time.monotonic() + seconds
    while any(_is_sealed(name) for name in Path("/sys/block").glob("dm-*/dm/name")):
        if time.monotonic() > give_up:
            raise TimeoutError(f"{place} is unmounted and its volume is not closed")
        time.sleep(0.02)


def phases(log: str) -> dict[str, float]:
    """Seconds of each phase, the median of all mounts in the log."""
    took, before = defaultdict[str, list[float]](list), 0.0
    for at, words in _LINE.findall(Path(log).read_text()):
        for known, phase in PHASES.items():
            if known in words:
                first = known == next(iter(PHASES))
                took[phase].append(float(at) - (0.0 if first else before))
                before = float(at)
    return {phase: statistics.median(values) for phase, values in took.items()}


def _is_sealed(name: Path) -> bool:
    try:
        return name.read_text().startswith("sealed-")
    except OSError:  # it goes at this moment
        return False


def _numbered(device: str, place: str) -> tuple[str, str]:
    number = Path(device).stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}", place
