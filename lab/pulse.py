"""A watch on a driver while a test does something else: how long its Probe takes, asked again and again as kubelet does.

It is a process of its own, as the sidecar is that asks for kubelet: what the test's own calls cost is not the driver's.
"""

import json
import subprocess
import sys
import threading
import time
from typing import Final

from lab import csi_calls

_PAUSE_SECONDS: Final = 0.2
_PATIENCE_SECONDS: Final = 60.0

_watches: dict[str, "subprocess.Popen[bytes]"] = {}


def start(socket: str) -> None:
    """Begin to ask."""
    argv = [sys.executable, "-m", "lab.pulse", socket]
    _watches[socket] = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def stop(socket: str) -> list[float]:
    """End it; returns the seconds of every Probe that was answered. One that was not counts its whole patience."""
    said, _ = _watches.pop(socket).communicate(timeout=2 * _PATIENCE_SECONDS)
    return [float(took) for took in json.loads(said)]


def _ask(socket: str, stopped: threading.Event) -> list[float]:
    seen = []
    while not stopped.wait(_PAUSE_SECONDS):
        began = time.monotonic()
        answer = csi_calls.call(socket, "Probe", {}, _PATIENCE_SECONDS)
        took = time.monotonic() - began
        # While the driver is being started again there is nobody to be slow.
        if answer["code"] == "OK" or took >= _PATIENCE_SECONDS:
            seen.append(took)
    return seen


def main(socket: str) -> None:
    """Ask until standard input ends, then print what was seen."""
    stopped = threading.Event()

    def wait() -> None:
        sys.stdin.buffer.read()
        stopped.set()

    threading.Thread(target=wait, daemon=True).start()
    print(json.dumps(_ask(socket, stopped)))


if __name__ == "__main__":
    main(sys.argv[1])
