"""The node of the lab: one interface over what is there, so that tests don't know which kernel is under them.

`pick()` takes the machine itself where it is root with a usable device-mapper, else User-mode Linux, and says which and
why. A power cut (`crash`) and a start on the same disks (`boot`) are operations of the interface.
"""

import base64
import itertools
import json
import os
import signal
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

REPOSITORY = Path(__file__).parents[1]
_MIB = 1024 * 1024
_LINE_LIMIT = 1500
DISK_BYTES = (1024 * _MIB, 1024 * _MIB, 512 * _MIB)


class RemoteError(Exception):
    """A call inside the node raised. `kind` is the class name there."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(f"{kind}: {message}\n--- in the node ---\n{trace}")
        self.kind = kind
        self.message = message


class LabUnavailable(Exception):
    """This machine can't run the lab; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished command in the node."""

    rc: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")


class Channel:
    """Calls over a pair of byte streams to an agent; many threads may call at once."""

    def __init__(self, reader: IO[bytes], writer: IO[bytes], spool: Path | None = None) -> None:
        self._writer = writer
        self._spool = spool
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {0: Future()}
        self.ready = self._waiting[0]
        threading.Thread(target=self._read, args=(reader,), daemon=True).start()

    def call(self, function: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """Carry out a function in the node."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            line = base64.b64encode(json.dumps(self._request(number, function, arguments)).encode()) + b"\n"
            self._writer.write(line)
            self._writer.flush()
        return future.result(timeout)

    def _request(self, number: int, function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """User-mode Linux stops reading its serial line for ever after a line of many KiB, so large ones go by file."""
        whole = {"id": number, "call": function, "arguments": dict(arguments)}
        text = json.dumps(whole)
        if self._spool is None or len(text) < _LINE_LIMIT:
            return whole
        path = self._spool / f"request-{number}.json"
        path.write_text(text)
        return {"id": number, "file": str(path)}

    def _read(self, reader: IO[bytes]) -> None:
        try:
            for line in reader:
                self._settle(json.loads(base64.b64decode(line)))
        except (OSError, ValueError):
            pass
        for future in tuple(self._waiting.values()):
            if not future.done():
                future.set_exception(ConnectionError("the node is gone"))

    def _settle(self, reply: dict[str, Any]) -> None:
        future = self._waiting.pop(reply["id"])
        if "error" in reply:
            error = reply["error"]
            known = error if isinstance(error, dict) else {"type": "GuestError", "message": error, "traceback": ""}
            future.set_exception(RemoteError(known["type"], known["message"], known["traceback"]))
        else:
            future.set_result(reply["result"])


class Node(ABC):
    """A machine with real LVM and real dm-crypt, and disks that outlive it.

    `flushes` says whether what it flushes has to be on the machine's own disk, which takes the time that it takes there.
    """

    kind: str
    disks: tuple[str, ...]

    def __init__(self, disk_bytes: Sequence[int] = DISK_BYTES, *, flushes: bool = False) -> None:
        self.flushes = flushes
        self._folder = tempfile.TemporaryDirectory(prefix="sealed-lab-")
        self.folder = Path(self._folder.name)
        self.shared = self.folder / "shared"
        """Seen under the same path inside and outside."""
        self.shared.mkdir()
        self.images = tuple(self._image(number, size) for number, size in enumerate(disk_bytes))
        self._channel: Channel | None = None

    def _image(self, number: int, size: int) -> Path:
        path = self.folder / f"disk{number}.img"
        path.touch()
        os.truncate(path, size)
        return path

    @abstractmethod
    def boot(self) -> None:
        """Start it on its disks; returns when calls are answered."""

    @abstractmethod
    def stop(self) -> None:
        """End it in order. Nothing runs afterwards; the disks stay until `close`."""

    @abstractmethod
    def crash(self) -> None:
        """Cut the power: nothing is flushed, the disks keep what they have."""

    def close(self) -> None:
        """Stop and remove everything."""
        self.stop()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: str, /, *, call_timeout: float = 300, **arguments: Any) -> Any:
        """Carry out `module:name` in the node with JSON arguments; returns its JSON result."""
        if self._channel is None:
            raise ConnectionError("the node is not booted")
        return self._channel.call(function, arguments, call_timeout)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Result:
        """Run a command in the node. With `check` a status other than 0 raises, with what the command said."""
        reply = self.call(
            "lab.inside:run",
            call_timeout=timeout + 30,
            argv=list(argv),
            stdin=base64.b64encode(stdin).decode(),
            timeout=timeout,
            env=dict(env or {}),
        )
        result = Result(
            rc=reply["rc"], stdout=base64.b64decode(reply["stdout"]), stderr=base64.b64decode(reply["stderr"])
        )
        if check and result.rc != 0:
            said = (result.stderr or result.stdout).decode(errors="replace")
            raise AssertionError(f"{' '.join(argv)}: exit status {result.rc}: {said}")
        return result

    def spawn(self, argv: Sequence[str], log: str, env: Mapping[str, str] | None = None) -> int:
        """Start a process in the node; returns its process id there."""
        return int(self.call("lab.inside:spawn", argv=list(argv), log=log, env=dict(env or {})))

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Signal a spawned process."""
        self.call("lab.inside:kill", pid=pid, number=int(number))

    def wait(self, pid: int, timeout: float = 60) -> int:
        """Wait for a spawned process to end; returns its exit status."""
        return int(self.call("lab.inside:wait", call_timeout=timeout + 10, pid=pid, timeout=timeout))

    def read(self, path: str, offset: int = 0, length: int = -1) -> bytes:
        """Bytes of a file or device in the node."""
        return base64.b64decode(self.call("lab.inside:read", path=path, offset=offset, length=length))

    def write(self, path: str, content: bytes, offset: int | None = None) -> None:
        """Write a file, or bytes of a device at an offset, and flush."""
        encoded = base64.b64encode(content).decode()
        self.call("lab.inside:write", path=path, content=encoded, offset=offset)

    def exists(self, path: str) -> bool:
        """Whether there is anything at a path in the node."""
        return bool(self.call("lab.inside:exists", path=path))

    def listing(self, path: str) -> list[str]:
        """Names in a directory of the node."""
        return [str(name) for name in self.call("lab.inside:listing", path=path)]

    def _await_agent(self, reader: IO[bytes], writer: IO[bytes], seconds: float = 60) -> None:
        channel = Channel(reader, writer, self.shared)
        channel.ready.result(seconds)
        self._channel = channel


def pick() -> type[Node]:
    """The kind of node that this machine can run, with the reason printed. Raises `LabUnavailable`.

    SEALED_LOCAL_LAB=uml, machine or none overrides.
    """
    from lab.machine import MachineNode
    from lab.uml import UmlNode

    wanted = os.environ.get("SEALED_LOCAL_LAB", "")
    kinds: Iterable[type[MachineNode | UmlNode]] = (MachineNode, UmlNode)
    reasons: list[str] = []
    if wanted == "none":
        raise LabUnavailable("SEALED_LOCAL_LAB=none")
    for kind in kinds:
        if wanted and kind.kind != wanted:
            continue
        reason = kind.why_not()
        if reason is None:
            print(f"lab: the node is {kind.kind}" + (f" ({'; '.join(reasons)})" if reasons else ""))
            return kind
        reasons.append(f"{kind.kind}: {reason}")
    raise LabUnavailable("; ".join(reasons) or f"SEALED_LOCAL_LAB={wanted} is not a kind of node")


def wait_until(what: str, seconds: float, probe: Any) -> Any:
    """Call `probe` until it returns something true; fails naming `what`."""
    give_up = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > give_up:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)
