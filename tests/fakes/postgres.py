"""Debian's PostgreSQL server on a socket in a folder of its own, as a user without rights, for one test run."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from csi.core.secret import Secret

_USER = "broker"
_NAMES = itertools.count()


def programs() -> Path | None:
    """The newest server's folder of programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def require() -> Path:
    """Skip where the server is not installed; fail there where everything is required."""
    found = programs()
    if found is None:
        reason = "no PostgreSQL server is installed (Debian's package postgresql)"
        if os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Server:
    """A server that a test may kill, stop for a while, and start again."""

    def __init__(self, root: Path, bin_: Path) -> None:
        self._root = root
        self._bin = bin_
        # The server refuses to run as root.
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            owner = pwd.getpwnam("postgres")
            os.chown(root, owner.pw_uid, owner.pw_gid)
        argv = [bin_ / "initdb", "-D", root / "data", "-A", "trust", "-U", _USER, "-E", "UTF8", "--locale=C"]
        subprocess.run([*argv, "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd=root, **self._as)  # type: ignore[call-overload]
        self.start()

    def start(self) -> None:
        argv = [self._bin / "postgres", "-D", self._root / "data", "-k", self._root, "-c", "listen_addresses="]
        with (self._root / "log").open("ab") as log:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [*argv, "-c", "autovacuum=off"], stdout=log, stderr=log, cwd=self._root, **self._as
            )
        for _ in range(600):
            try:
                self.connect("postgres").close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError((self._root / "log").read_text())

    def kill(self) -> None:
        """At once, as a machine that fails: the server's other processes notice."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(timeout=60)

    def signal(self, number: signal.Signals, backends: list[int]) -> None:
        """To the server and those of its processes that serve connections."""
        for pid in (self._process.pid, *backends):
            os.kill(pid, number)

    def conninfo(self, database: str) -> str:
        return f"host={self._root} user={_USER} dbname={database}"

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo(database), autocommit=True)

    def new_database(self) -> str:
        """An empty one."""
        name = f"register{next(_NAMES)}"
        with closing(self.connect("postgres")) as link:
            link.execute(f"CREATE DATABASE {name}".encode())
        return name

    def register(self) -> Secret:
        """How to reach a new database, in which there is nothing yet."""
        return Secret(self.conninfo(self.new_database()).encode())


@contextmanager
def server() -> Iterator[Server]:
    """A new server, gone at the end of the block with everything in it."""
    bin_ = require()
    # A socket's path has at most 107 bytes, and pytest's folders can't be entered by others.
    root = Path(tempfile.mkdtemp(prefix="pg-"))
    made = Server(root, bin_)
    try:
        yield made
    finally:
        made.kill()
        shutil.rmtree(root)
