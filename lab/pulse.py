"""A watch on a driver while a test does something else: how long its Probe takes, asked again and again as kubelet does."""

import threading
import time

from lab import csi_calls

_PAUSE_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0

_stopped: dict[str, threading.Event] = {}
_threads: dict[str, threading.Thread] = {}
_took: dict[str, list[float]] = {}


def start(socket: str) -> None:
    """Begin to ask."""
    _stopped[socket], _took[socket] = threading.Event(), []
    _threads[socket] = threading.Thread(target=_ask, args=(socket,), daemon=True)
    _threads[socket].start()


def stop(socket: str) -> list[float]:
    """End it; returns the seconds of every Probe that was answered. One that was not counts its whole patience."""
    _stopped[socket].set()
    _threads.pop(socket).join()
    return _took.pop(socket)


def _ask(socket: str) -> None:
    while not _stopped[socket].wait(_PAUSE_SECONDS):
        began = time.monotonic()
        answer = csi_calls.call(socket, "Probe", {}, _PATIENCE_SECONDS)
        took = time.monotonic() - began
        # While the driver is being started again there is nobody to be slow.
        if answer["code"] == "OK" or took >= _PATIENCE_SECONDS:
            _took[socket].append(took)
