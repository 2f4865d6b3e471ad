"""The real confidential-data-hub behind the front: started, started again when it ends, ended with the front.

A process of its own does that, so that the front has no children that it must wait for.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from csi.guest.serve import cdh_config, nursery

_PAUSE_SECONDS: Final = 1.0
"""Between two starts: one that can't live must not take the processor."""
_PATIENCE_SECONDS: Final = 5.0


def socket_beside(path: Path) -> Path:
    """The socket of the confidential-data-hub behind a front at `path`."""
    return path.with_name(f"{path.stem}-behind{path.suffix}")


def write_config(given: str | None, folder: Path, behind: Path) -> Path:
    """Write the configuration for the confidential-data-hub; returns its path. Raises `InvalidInput`, `OSError`."""
    if given is not None:
        text = cdh_config.with_socket(Path(given).read_text(), str(behind))
    else:
        text = cdh_config.from_command_line(Path("/proc/cmdline").read_text(), str(behind))
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    written = folder / f"{behind.stem}.toml"
    written.write_text(text)
    return written


def start(program: str, config: Path, behind: Path) -> socket.socket:
    """Keep the program running until the returned socket is closed, which the end of this process does, too."""
    ours, theirs = socket.socketpair()
    nursery.forked(lambda: _keep(program, config, behind, theirs), [ours])
    theirs.close()
    return ours


def _keep(program: str, config: Path, behind: Path, front: socket.socket) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        behind.unlink(missing_ok=True)
        started = time.monotonic()
        try:
            child = subprocess.Popen([program, "-c", str(config)], stdin=subprocess.DEVNULL)
        except OSError as error:
            _told(f"{program} can't be started: {error.strerror}")
        else:
            if not _ended_before(child, front):
                _end(child)
                return
            _told(f"{program} ended with status {child.returncode} and is started again")
        pause = max(0.0, started + _PAUSE_SECONDS - time.monotonic())
        if select.select([front], [], [], pause)[0]:
            return


def _ended_before(child: "subprocess.Popen[bytes]", front: socket.socket) -> bool:
    """Wait for the end of either; returns whether it is the child that ended."""
    descriptor = os.pidfd_open(child.pid)
    try:
        ended, _, _ = select.select([descriptor, front.fileno()], [], [])
    finally:
        os.close(descriptor)
    if descriptor in ended:
        child.wait()
        return True
    return False


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _told(text: str) -> None:
    print(f"sealed-local guest serve: {text}", file=sys.stderr, flush=True)
