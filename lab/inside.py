"""Functions that the node agent carries out: run, spawn, kill, read, write. Bytes travel as base64."""

import base64
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

_children: dict[int, subprocess.Popen[bytes]] = {}


def run(argv: list[str], stdin: str = "", timeout: float = 60, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command to its end."""
    done = subprocess.run(
        argv,
        input=base64.b64decode(stdin),
        capture_output=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        check=False,
    )
    return {"rc": done.returncode, "stdout": _text(done.stdout), "stderr": _text(done.stderr)}


def spawn(argv: list[str], log: str, env: dict[str, str] | None = None) -> int:
    """Start a process in a group of its own, its output appended to `log`; returns its process id."""
    with Path(log).open("ab") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            process_group=0,
        )
    _children[child.pid] = child
    return child.pid


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a spawned process."""
    child = _children[pid]
    if child.poll() is None:
        child.send_signal(number)


def wait(pid: int, timeout: float = 60) -> int:
    """Wait for a spawned process; returns its exit status."""
    return _children[pid].wait(timeout)


def read(path: str, offset: int = 0, length: int = -1) -> str:
    """Bytes of a file or device."""
    with Path(path).open("rb") as file:
        file.seek(offset)
        return _text(file.read(length))


def write(path: str, content: str, offset: int | None = None) -> None:
    """Write a whole file, or bytes at an offset of a device, and flush."""
    flags = os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if offset is None else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        os.lseek(descriptor, offset or 0, os.SEEK_SET)
        view = memoryview(base64.b64decode(content))
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exists(path: str) -> bool:
    """Whether there is anything at a path, links not followed."""
    return os.path.lexists(path)


def listing(path: str) -> list[str]:
    """Names in a directory; none when it is absent."""
    return sorted(entry.name for entry in Path(path).iterdir()) if Path(path).is_dir() else []


def wait_for(path: str, timeout: float = 30) -> None:
    """Wait until something is at a path."""
    give_up = time.monotonic() + timeout
    while not os.path.lexists(path):
        if time.monotonic() > give_up:
            raise TimeoutError(f"{path} does not appear")
        time.sleep(0.02)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
