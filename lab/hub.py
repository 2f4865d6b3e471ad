"""A played confidential-data-hub: a ttRPC server for the services that a stock one has, told by `-c FILE` where to listen.

It answers each request with the request's own payload. Some methods are there for tests: `Never` does not answer, `Slowly`
does so when a file named by the payload appears, `Refuse` answers with an error, `Stream` with a message a byte, and
`Die` ends the process. A SecureMount is noted in a file beside the socket, because a stock one would have formatted.
"""

import os
import socket
import struct
import sys
import threading
import time
import tomllib
from pathlib import Path

from csi.guest.serve.frames import DATA, REQUEST, Frame, Reader, response
from csi.guest.serve.proto.ttrpc_pb2 import Request, Response, Status

REMOTE_CLOSED = 1
NO_DATA = 4


def main(arguments: list[str]) -> None:
    """Serve until the process ends."""
    config = tomllib.loads(Path(arguments[arguments.index("-c") + 1]).read_text())
    path = Path(config["socket"].removeprefix("unix://"))
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, path), daemon=True).start()


def _serve(connection: socket.socket, path: Path) -> None:
    reader, lock = Reader(), threading.Lock()
    echoed: dict[int, bytes] = {}
    asked = set[int]()
    while received := connection.recv(65536):
        for frame in reader.feed(received):
            assert isinstance(frame, Frame)
            if frame.kind == REQUEST:
                request = Request.FromString(frame.payload)
                asked.add(frame.stream)
                threading.Thread(target=_answer, args=(connection, lock, frame, request, path), daemon=True).start()
            elif frame.stream not in asked:
                connection.close()  # as strict servers do: the peer doesn't speak the protocol
                return
            elif frame.kind == DATA:
                echoed[frame.stream] = echoed.get(frame.stream, b"") + frame.payload
                if frame.raw[9] & REMOTE_CLOSED:
                    _send(connection, lock, response(frame.stream, _done(echoed.pop(frame.stream))))


def _answer(connection: socket.socket, lock: threading.Lock, frame: Frame, request: Request, path: Path) -> None:
    payload, stream = request.payload, frame.stream
    if request.method == "Die":
        os._exit(9)
    if request.method in ("Never", "Upload"):
        return
    if request.method == "Slowly":
        while not Path(payload.decode()).exists():
            time.sleep(0.01)
    if request.method == "Refuse":
        status = Status(code=5, message=payload.decode())
        _send(connection, lock, response(stream, Response(status=status).SerializeToString()))
        return
    if request.method == "Stream":
        for byte in payload:
            _send(connection, lock, struct.pack(">IIBB", 1, stream, DATA, 0) + bytes([byte]))
        payload = b""
    if request.method == "SecureMount":
        path.with_suffix(".mounts").write_bytes(payload)
        payload = b""
    _send(connection, lock, response(stream, _done(payload)))


def _done(payload: bytes) -> bytes:
    return Response(status=Status(), payload=payload).SerializeToString()


def _send(connection: socket.socket, lock: threading.Lock, raw: bytes) -> None:
    with lock:
        connection.sendall(raw)


if __name__ == "__main__":
    main(sys.argv[1:])
