"""The node agent: a long-lived Python process inside the node that carries out calls for tests that run outside.

One frame a line: base64 of JSON. A request names a function (`module:name`) and keyword arguments, the reply carries its
result or its exception. It knows nothing of the driver; what can be called is any function of `lab`.
"""

import base64
import importlib
import json
import os
import sys
import termios
import threading
import traceback
import tty
from pathlib import Path
from typing import Any, BinaryIO

_write_lock = threading.Lock()


def serve(reader: BinaryIO, writer: BinaryIO) -> None:
    """Answer calls until the other side closes; every call has a thread of its own."""
    _send(writer, {"id": 0, "result": "ready"})
    for line in reader:
        request = json.loads(base64.b64decode(line))
        threading.Thread(target=_answer, args=(writer, request), daemon=True).start()


def _answer(writer: BinaryIO, request: dict[str, Any]) -> None:
    try:
        if "file" in request:
            request = json.loads(Path(request["file"]).read_text())
        module, name = request["call"].split(":")
        result = getattr(importlib.import_module(module), name)(**request["arguments"])
        reply = {"id": request["id"], "result": result}
    except BaseException as error:
        reply = {
            "id": request["id"],
            "error": {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()},
        }
    _send(writer, reply)


def _send(writer: BinaryIO, reply: dict[str, Any]) -> None:
    line = base64.b64encode(json.dumps(reply).encode()) + b"\n"
    with _write_lock:
        writer.write(line)
        writer.flush()


def main() -> None:
    """`python -m lab.agent TTY` serves on a terminal line; without an argument on standard input and output."""
    if len(sys.argv) > 1:
        descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
        tty.setraw(descriptor, termios.TCSANOW)
        serve(os.fdopen(descriptor, "rb"), os.fdopen(os.dup(descriptor), "wb"))
    else:
        serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
