"""A stock kata-agent as its confidential-data-hub sees it: it removes an earlier socket, starts the program, waits
for the path in steps, connects once, and asks for everything on that one connection.
"""

import socket
import struct
import subprocess
import time
from pathlib import Path

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
    give_up = time.monotonic() + LAUNCH_SECONDS * 5  # a busy machine is no fault
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
