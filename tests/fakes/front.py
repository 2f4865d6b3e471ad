"""The front with played workers: `python -m tests.fakes.front SOCKET [HUB]`. The mount point says what a worker does.

HUB is a program that plays the confidential-data-hub.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from csi.guest.serve import answers, behind, front, words
from csi.guest.serve.answers import Code
from csi.guest.serve.proto.secure_mount_pb2 import SecureMountRequest


def work(packet: bytes, to_front: socket.socket) -> None:
    """Play a worker."""
    if packet.startswith(words.WATCH):
        _watch(packet[1:].decode(), to_front)
        return
    place = SecureMountRequest.FromString(packet[1:]).mount_point
    if place == "/dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if place.startswith("/waits"):
        _wait_for(Path(place.removeprefix("/waits")))
    if place == "/not-ours":
        to_front.send(words.PASS_ON)
    elif place == "/fails":
        to_front.send(words.ANSWER + answers.failure(Code.PERMISSION_DENIED, "the broker's own words"))
    elif place.startswith("/volume"):
        to_front.send(words.WATCH + place.removeprefix("/volume").encode())
        to_front.send(words.ANSWER + answers.done())
        _watch(place.removeprefix("/volume"), to_front)
    else:
        to_front.send(words.ANSWER + answers.done())


def _watch(folder: str, to_front: socket.socket) -> None:
    """Look after a "volume": its folder gets a file of this process's number; a file `end` ends it."""
    to_front.send(words.WATCH + folder.encode())
    Path(folder, str(os.getpid())).touch()
    _wait_for(Path(folder, "end"))
    Path(folder, "closed").touch()
    to_front.send(words.DONE)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def main(arguments: list[str]) -> None:
    """Serve."""
    path = Path(arguments[0])
    other = hub = None
    if len(arguments) > 1:
        other = behind.socket_beside(path)
        hub = behind.start(arguments[1], behind.write_config(None, path.parent, other), other)
    listener = front.listen(path)
    made = front.Front(
        listener,
        prepare=lambda: lambda: work,
        behind=str(other) if other is not None else None,
        hub=hub,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    made.run()


if __name__ == "__main__":
    main(sys.argv[1:])
