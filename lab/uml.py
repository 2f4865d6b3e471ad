"""A node in User-mode Linux: a real kernel with LVM and dm-crypt as an ordinary process, where there is none."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from lab.node import REPOSITORY, Node

_MEMORY_MIB = 3072
_TICK_SECONDS = 2.0
_CACHE = Path(os.environ.get("SEALED_LOCAL_CACHE", REPOSITORY / ".cache")) / "uml"


class UmlNode(Node):
    """The machine's own root is its root, read-only below an overlay in memory; its disks are sparse files."""

    kind = "uml"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.disks = tuple(f"/dev/ubd{chr(ord('a') + number)}" for number in range(len(self.images)))
        self._kernel: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()

    @staticmethod
    def why_not() -> str | None:
        """Why this machine can't run it; None when it can."""
        if shutil.which("linux.uml") is None:
            return "the package user-mode-linux is not installed"
        return None if os.geteuid() == 0 else "not root"

    def boot(self) -> None:
        """See `Node.boot`. Two to four seconds."""
        ours, theirs = socket.socketpair()
        console = (self.folder / "console.log").open("ab")
        # Its memory is a file in TMPDIR; on a disk it would be slow.
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else str(self.folder)
        self._kernel = subprocess.Popen(
            self._argv(theirs.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=(theirs.fileno(),),
            env={
                "PATH": os.environ["PATH"],
                "TMPDIR": memory,
                "HOME": str(self.folder),
                "LD_PRELOAD": str(_preloaded()),
                **({"LAB_FLUSHES": "1"} if self.flushes else {}),
            },
            process_group=0,
        )
        console.close()
        theirs.close()
        self._socket = ours
        try:
            self._await_agent(ours.makefile("rb"), ours.makefile("wb"))
        except BaseException:
            self.crash()
            raise RuntimeError(f"the node does not boot: {self._console()[-2000:]}") from None
        self._ended = threading.Event()
        threading.Thread(target=self._tick, args=(self._kernel, self._ended), daemon=True).start()

    @staticmethod
    def _tick(kernel: "subprocess.Popen[bytes]", ended: threading.Event) -> None:
        """Its clock is a timer of the machine that it sets anew at each alarm. One alarm that is lost, as was seen once in
        hours of work, would stop it for ever: nothing that sleeps wakes up any more.
        """
        while not ended.wait(_TICK_SECONDS):
            kernel.send_signal(signal.SIGALRM)

    def _argv(self, serial: int) -> list[str]:
        """The kernel's command line; `serial` is the descriptor that the agent in the node talks over."""
        return [
            # It has one processor only, and each of its system calls is a hand-over between two of the machine's processes:
            # on one of the machine's processors that takes a third of the time that it takes across two.
            *("taskset", "--cpu-list", str(max(os.sched_getaffinity(0)))),
            "linux.uml",
            f"mem={_MEMORY_MIB}M",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "quiet",
            "con=null",
            "con0=null,fd:1",
            f"ssl0=fd:{serial}",
            f"init={REPOSITORY}/lab/uml-init",
            f"LAB_SHARED={self.shared}",
            f"LAB_ROOT={REPOSITORY}",
            f"LAB_PYTHON={sys.executable}",
            *(f"ubd{number}={image}" for number, image in enumerate(self.images)),
        ]

    def stop(self) -> None:
        """See `Node.stop`."""
        if self._kernel is None:
            return
        self._ended.set()
        self._socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._kernel.wait(20)
        self.crash()

    def crash(self) -> None:
        """See `Node.crash`: the whole process group ends at once, with everything that the kernel had not written."""
        if self._kernel is None:
            return
        self._ended.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._kernel.pid, signal.SIGKILL)
        self._kernel.wait()
        self._kernel = None
        self._channel = None
        self._socket.close()

    def _console(self) -> str:
        return (self.folder / "console.log").read_text(errors="replace")


def _preloaded() -> Path:
    """The library that goes between this kernel and the machine; compiled once. Its source says what for."""
    source = Path(__file__).with_name("uml_preload.c")
    library = _CACHE / f"preload-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not library.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        draft = library.with_suffix(f".{os.getpid()}")
        compiler = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(draft), str(source), "-ldl"]
        subprocess.run(compiler, check=True)
        draft.rename(library)
    return library
