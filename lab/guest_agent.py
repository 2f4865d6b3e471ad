"""Plays kata-agent inside the guest, on a virtio-serial port: storages, processes, files. Standard library only.

Kata speaks ttRPC over vsock; a nested, emulated machine has no vsock, so frames of JSON on a serial port carry the same
fields instead. How a storage is handled follows kata-agent 4.1.0: wait for the device at its address, make the directory,
mount(2) the given type and options, no probing, no formatting, no repair.
"""

import base64
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_PORT = "kata.agent"
_MS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "remount": 32, "noatime": 1024, "nodiratime": 2048,
       "bind": 4096, "relatime": 1 << 21}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)
_lock = threading.Lock()


def find_device(driver: str, source: str, seconds: float = 20.0) -> str:
    """The device node at a SCSI address (`<id>:<lun>`) or a PCI path (`03`), waited for as kata-agent does."""
    give_up = time.monotonic() + seconds
    while True:
        for name in os.listdir("/sys/block"):
            place = os.path.realpath(f"/sys/block/{name}/device")
            if driver == "scsi":
                target, lun = source.split(":")
                if place.rsplit("/", 1)[-1].endswith(f":0:{target}:{lun}"):
                    return f"/dev/{name}"
            elif driver == "blk" and f":{source}.0" in place and name.startswith("vd"):
                return f"/dev/{name}"
        if time.monotonic() > give_up:
            raise TimeoutError(f"no device appears at {driver} {source}")
        time.sleep(0.02)


def create_storage(storage: dict[str, Any]) -> str:
    """Mount a storage as kata-agent does; `driver_options` for encryption are not what this stand-in plays."""
    if not storage["fstype"]:
        raise ValueError("empty fstype")
    if "loop" in storage["options"]:
        raise ValueError("loop is refused")
    device = find_device(storage["driver"], storage["source"])
    os.makedirs(storage["mount_point"], exist_ok=True)
    flags, data = 0, list[str]()
    for option in storage["options"]:
        if option in _MS:
            flags |= _MS[option]
        elif option not in ("rw", "defaults"):
            data.append(option)
    result = _libc.mount(
        device.encode(), storage["mount_point"].encode(), storage["fstype"].encode(), flags, ",".join(data).encode()
    )
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), device)
    return device


def run(argv: list[str], stdin: str = "", timeout: float = 120, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a process in the guest to its end."""
    done = subprocess.run(
        argv, input=base64.b64decode(stdin), capture_output=True, timeout=timeout, env={**os.environ, **(env or {})}
    )
    return {"rc": done.returncode, "stdout": _text(done.stdout), "stderr": _text(done.stderr)}


def read_file(path: str) -> str:
    """Bytes of a file."""
    with open(path, "rb") as file:
        return _text(file.read())


def write_file(path: str, content: str) -> None:
    """Write a file and flush it."""
    with open(path, "wb") as file:
        file.write(base64.b64decode(content))
        file.flush()
        os.fsync(file.fileno())


def drop_caches() -> None:
    """Forget what was read of devices, so that the next reading asks the host again."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


_CALLS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (find_device, create_storage, run, read_file, write_file, drop_caches)
}


def _answer(port: int, request: dict[str, Any]) -> None:
    try:
        reply = {"id": request["id"], "result": _CALLS[request["call"]](**request["arguments"])}
    except BaseException as error:
        reply = {"id": request["id"], "error": f"{type(error).__name__}: {error}"}
    line = base64.b64encode(json.dumps(reply).encode()) + b"\n"
    with _lock:
        while line:
            select.select([], [port], [])
            line = line[os.write(port, line) :]


def _port() -> int:
    while True:
        for name in os.listdir("/sys/class/virtio-ports"):
            with open(f"/sys/class/virtio-ports/{name}/name") as file:
                if file.read().strip() == _PORT:
                    return os.open(f"/dev/{name}", os.O_RDWR)
        time.sleep(0.02)


def main() -> None:
    """Serve until the machine ends; also reaps orphans, as process 1 must."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.setdefault("PATH", "/usr/sbin:/usr/bin")
    port = _port()
    pending = bytearray(base64.b64encode(json.dumps({"id": 0, "result": time.monotonic()}).encode()) + b"\n")
    os.write(port, pending)
    pending.clear()
    while True:
        select.select([port], [], [])
        data = os.read(port, 65536)
        if not data:
            time.sleep(0.05)
            continue
        pending += data
        while b"\n" in pending:
            line, _, rest = pending.partition(b"\n")
            pending = bytearray(rest)
            request = json.loads(base64.b64decode(bytes(line)))
            threading.Thread(target=_answer, args=(port, request), daemon=True).start()


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        print("guest agent:", repr(error), file=sys.stderr)
        raise
