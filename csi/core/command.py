"""The one place that runs processes: argv lists, an environment built from nothing, bounded time, no shell."""

import contextlib
import logging
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from csi.core.command_line import logged
from csi.core.errors import CommandError, CommandKilled, CommandTimeout, ToolFailed, Unavailable
from csi.core.secret import Secret

_log = logging.getLogger(__name__)

_PATH = "/opt/sealed-local/tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BASE_ENVIRONMENT = {"PATH": _PATH, "LC_ALL": "C"}
_GIVE_UP_ON_PIPES_SECONDS = 5.0
_READS_EVERY_DISK = "lvm"
_STUCK_LIMIT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished command said."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text; undecodable bytes stay visible as escapes."""
        return self.stdout.decode(errors="backslashreplace")


class Runner(Protocol):
    """Runs one command to its end. Tests give their own."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes | Secret = b"",
        ok: Collection[int] = (0,),
        env: Mapping[str, str] | None = None,
        pass_fds: Collection[int] = (),
    ) -> Result:
        """Run `argv`, give it `stdin`, wait at most `timeout` seconds.

        Raises `CommandError` when the exit status is not in `ok`, `CommandTimeout` when time is up (the whole process
        group is then killed), `CommandKilled` when somebody else's signal ended it, `ToolFailed` when the program can't
        be started, `Unavailable` when too many earlier ones of its kind hang in the kernel.
        """
        ...


class LocalRunner:
    """Runs commands on this machine. `prefix` goes before every argv (for example nsenter into the host)."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self._prefix = tuple(prefix)
        self._stuck = _Stuck()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes | Secret = b"",
        ok: Collection[int] = (0,),
        env: Mapping[str, str] | None = None,
        pass_fds: Collection[int] = (),
    ) -> Result:
        """See `Runner.run`."""
        full = (*self._prefix, *argv)
        self._stuck.require_few(argv[0])
        started = time.monotonic()
        data = stdin.reveal() if isinstance(stdin, Secret) else stdin
        environment = {**_BASE_ENVIRONMENT, **(env or {})}
        with contextlib.ExitStack() as files:
            streams = _Pipes() if data else _Memory(files)
            child = _start(full, environment, tuple(pass_fds), streams)
            try:
                stdout, stderr = streams.finish(child, data, timeout)
            except subprocess.TimeoutExpired:
                _kill_group(child)
                raise CommandTimeout(full, timeout) from None
            except BaseException:
                _kill_group(child)
                raise
            finally:
                self._stuck.add(argv[0], child)
        result = Result(argv=full, returncode=child.returncode, stdout=stdout, stderr=stderr)
        _log.debug(
            "command",
            extra={"argv": logged(full), "rc": child.returncode, "ms": round((time.monotonic() - started) * 1000)},
        )
        if child.returncode < 0:
            raise CommandKilled(full, -child.returncode)
        if child.returncode not in ok:
            raise CommandError(full, child.returncode, result.text, stderr.decode(errors="backslashreplace"))
        return result


class _Stuck:
    """LVM commands that a SIGKILL did not end: they wait in the kernel for a disk that does not answer.

    LVM reads every disk, so the next one would wait there too. Each costs a process and a thread for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[bytes]] = []

    def add(self, program: str, child: subprocess.Popen[bytes]) -> None:
        """Remember a command that should have ended and has not; it is forgotten when it ends."""
        if program == _READS_EVERY_DISK and child.poll() is None:
            with self._lock:
                self._children.append(child)

    def require_few(self, program: str) -> None:
        """Raises `Unavailable` when so many hang that another one would hang, too."""
        if program != _READS_EVERY_DISK:
            return
        with self._lock:
            self._children = [child for child in self._children if child.poll() is None]
            pids = [str(child.pid) for child in self._children]
        if len(pids) >= _STUCK_LIMIT:
            raise Unavailable(
                f"LVM commands hang in the kernel and can't be killed (processes {', '.join(pids)}): a disk does not "
                "answer. No other is started until one of them ends; look at the kernel's log, then mend or remove the disk"
            )


class _Pipes:
    """For a command that is given something: it gets that, and its output is taken, through pipes."""

    stdin = stdout = stderr = subprocess.PIPE

    def finish(self, child: subprocess.Popen[bytes], data: bytes, timeout: float) -> tuple[bytes, bytes]:
        """Standard output and standard error. Raises `subprocess.TimeoutExpired`."""
        return child.communicate(data, timeout=timeout)


class _Memory:
    """For a command that is given nothing: its output lies in files in memory, so that only its end is waited for, by the
    kernel's word and not by looking again and again. They last as long as `files`.
    """

    stdin = subprocess.DEVNULL

    def __init__(self, files: contextlib.ExitStack) -> None:
        self._stdout = files.enter_context(os.fdopen(os.memfd_create("stdout"), "rb"))
        self._stderr = files.enter_context(os.fdopen(os.memfd_create("stderr"), "rb"))
        self.stdout, self.stderr = self._stdout.fileno(), self._stderr.fileno()

    def finish(self, child: subprocess.Popen[bytes], _: bytes, timeout: float) -> tuple[bytes, bytes]:
        """See `_Pipes.finish`."""
        _wait(child, timeout)
        self._stdout.seek(0)
        self._stderr.seek(0)
        return self._stdout.read(), self._stderr.read()


def _wait(child: subprocess.Popen[bytes], timeout: float) -> None:
    """Raises `subprocess.TimeoutExpired`."""
    try:
        descriptor = os.pidfd_open(child.pid)
    except OSError:
        # Linux before 5.3, or a filter that knows no such call.
        child.wait(timeout)
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(timeout * 1000)
    finally:
        os.close(descriptor)
    child.wait(0)


def _start(
    argv: tuple[str, ...], environment: dict[str, str], pass_fds: tuple[int, ...], streams: _Pipes | _Memory
) -> subprocess.Popen[bytes]:
    try:
        # A process group of its own, so that a time-out ends children of the command too. The program is looked up here, as
        # each folder of PATH without it costs a try to start it there.
        return subprocess.Popen(
            argv,
            executable=shutil.which(argv[0], path=environment["PATH"]) or argv[0],
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            env=environment,
            pass_fds=pass_fds,
            process_group=0,
        )
    except FileNotFoundError as error:
        raise ToolFailed(f"{argv[0]}: not found on PATH; install the package that holds it") from error
    except OSError as error:
        raise ToolFailed(f"{argv[0]}: can't be started: {error.strerror}") from error


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL, because cryptsetup ignores SIGTERM inside a PBKDF. A child in D state is left behind, not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.communicate(timeout=_GIVE_UP_ON_PIPES_SECONDS)
    except subprocess.TimeoutExpired:
        _log.error("a killed command does not end", extra={"pid": child.pid})
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
