"""A stock kata-agent as its confidential-data-hub sees it: it removes an earlier socket, starts the program, waits
for the path in steps, connects once, and asks for everything on that one connection.

In the lab's guest it runs as a program, `kata_agent.py STEPS`: a JSON list of what to do, each `[NAME, ARGUMENT...]`, done
in order on one connection; it prints the list of what came of each.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from csi.guest.serve.frames import REQUEST, Frame, Reader
from csi.guest.serve.proto.secure_mount_pb2 import SecureMountRequest
from csi.guest.serve.proto.ttrpc_pb2 import Request, Response

LAUNCH_SECONDS = 6
"""How long the agent waits for the path (`agent.launch_process_timeout`)."""
ANSWER_SECONDS = 50.0
"""How long it waits for an answer (`agent.cdh_api_timeout`)."""
REMOTE_CLOSED = 1
REMOTE_OPEN = 2


def launch(command: list[str], path: Path, **more: object) -> "subprocess.Popen[bytes]":
    """Start what stands at the confidential-data-hub's place, as the agent does. Raises `TimeoutError` without a socket."""
    path.unlink(missing_ok=True)
    process: subprocess.Popen[bytes] = subprocess.Popen(command, stdin=subprocess.DEVNULL, **more)  # type: ignore[call-overload]
    give_up = time.monotonic() + LAUNCH_SECONDS * 20  # a busy machine is no fault
    while not path.exists():
        if time.monotonic() > give_up or process.poll() is not None:
            process.kill()
            raise TimeoutError(f"no {path}; status {process.wait()}")
        time.sleep(0.05)
    return process


class Caller:
    """One connection. Streams are odd and rise by two, and several may be open at once."""

    def __init__(self, path: Path, seconds: float = ANSWER_SECONDS) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(str(path))
        self._reader, self._stream = Reader(), -1
        self._frames: list[Frame] = []

    def ask(self, service: str, method: str, payload: bytes, *, more: bool = False, nanoseconds: int = 0) -> int:
        """Send a request; returns its stream. `more`: parts follow by `part`."""
        self._stream += 2
        request = Request(service=service, method=method, payload=payload, timeout_nano=nanoseconds)
        self.send(self._stream, REQUEST, request.SerializeToString(), REMOTE_OPEN if more else REMOTE_CLOSED)
        return self._stream

    def send(self, stream: int, kind: int, payload: bytes, flags: int = 0) -> None:
        """Send a frame."""
        self.socket.sendall(struct.pack(">IIBB", len(payload), stream, kind, flags) + payload)

    def next(self) -> Frame:
        """The next frame that came, of whatever stream. Raises `EOFError` when the peer is gone."""
        while not self._frames:
            received = self.socket.recv(65536)
            if not received:
                raise EOFError
            self._frames += [frame for frame in self._reader.feed(received) if isinstance(frame, Frame)]
        return self._frames.pop(0)

    def call(self, service: str, method: str, payload: bytes) -> Response:
        """Ask, and wait for the answer; no other stream may be open."""
        stream = self.ask(service, method, payload)
        frame = self.next()
        assert frame.stream == stream
        return Response.FromString(frame.payload)

    def secure_mount(self, device: str, mount_point: str) -> Response:
        """What the agent asks for an encrypted ephemeral storage, and so for a sealed volume."""
        return self.call("api.SecureMountService", "SecureMount", mount_request(device, mount_point))


def mount_request(device: str, mount_point: str) -> bytes:
    """The request as the agent words it. `device` is its number, `MAJOR:MINOR`."""
    options = {
        "deviceId": device,
        "sourceType": "empty",
        "targetType": "fileSystem",
        "filesystemType": "ext4",
        "mkfsOpts": "-O ^has_journal -m 0 -i 163840 -I 128",
        "encryptionType": "luks2",
        "dataIntegrity": "true",
    }
    made = SecureMountRequest(volume_type="block-device", options=options, mount_point=mount_point)
    return made.SerializeToString()


class Session:
    """The steps of one agent, by their names."""

    def __init__(self) -> None:
        self._caller: Caller | None = None
        self._begun = 0

    def launch(self, path: str, *command: str) -> str:
        """Start what stands at the hub's place, and connect."""
        with Path("/run/serve.log").open("ab") as log:
            launch(list(command), Path(path), stderr=log, stdout=log)
        self._caller = Caller(Path(path), seconds=ANSWER_SECONDS * 4)  # an emulated machine is slower
        return "connected"

    def connect(self, path: str) -> str:
        """Connect to one that runs already."""
        self._caller = Caller(Path(path), seconds=ANSWER_SECONDS * 4)
        return "connected"

    def call(self, service: str, method: str, payload: str) -> list[Any]:
        """Ask and wait; answers code, message and payload."""
        return _answer(self._connected.call(service, method, payload.encode()))

    def begin(self, service: str, method: str, payload: str) -> int:
        """Ask and don't wait."""
        self._begun = self._connected.ask(service, method, payload.encode())
        return self._begun

    def finish(self) -> list[Any]:
        """The answer to what was begun."""
        frame = self._connected.next()
        assert frame.stream == self._begun
        return _answer(Response.FromString(frame.payload))

    def mount(self, device: str, place: str) -> list[Any]:
        """A SecureMount: the agent makes the directory, and names the device by its number."""
        Path(place).mkdir(parents=True, exist_ok=True)
        number = Path(device).stat().st_rdev
        return _answer(self._connected.secure_mount(f"{os.major(number)}:{os.minor(number)}", place))

    def unmount(self, place: str) -> int:
        """What the agent does at the end. It tells nobody."""
        return subprocess.run(["umount", place]).returncode

    def write(self, path: str, content: str) -> int:
        """Write a file."""
        return Path(path).write_text(content)

    def read(self, path: str) -> str:
        """Read a file."""
        return Path(path).read_text()

    def closed(self) -> bool:
        """Wait until no dm-crypt mapping is there any more."""
        give_up = time.monotonic() + 120
        while any(Path("/sys/block").glob("dm-*")):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.1)
        return True

    def kill(self, words: str, oldest: bool = True) -> int:
        """Kill a process by words of its command line, the oldest that has them; answers how many have them."""
        found = [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and int(folder.name) != os.getpid() and words in _command_line(folder)
        ]
        os.kill(min(found) if oldest else max(found), signal.SIGKILL)
        return len(found)

    def lost(self) -> str:
        """Ask on a connection that should have ended."""
        try:
            self._connected.call("api.SealedSecretService", "Unseal", b"")
        except (EOFError, ConnectionError) as error:
            return type(error).__name__
        return "still connected"

    @property
    def _connected(self) -> Caller:
        assert self._caller is not None
        return self._caller


def _answer(response: Response) -> list[Any]:
    return [response.status.code, response.status.message, response.payload.decode()]


def _command_line(folder: Path) -> str:
    try:
        return folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


if __name__ == "__main__":
    session, came = Session(), []
    for name, *arguments in json.loads(sys.argv[1]):
        do: Callable[..., Any] = getattr(session, name)
        came.append(do(*arguments))
    print(json.dumps(came))
