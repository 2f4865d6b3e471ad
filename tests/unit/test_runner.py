"""What a command gets from us, and what remains of it: nothing of our environment, no descriptors, no children."""

import errno
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from csi.core import command
from csi.core.command import LocalRunner
from csi.core.errors import CommandError, CommandTimeout, ToolFailed
from csi.core.secret import Secret

PATH = "/opt/sealed-local/tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def said(*argv: str, **more: object) -> str:
    return LocalRunner().run(argv, timeout=30, **more).text  # type: ignore[arg-type]


def test_nothing_of_our_environment_reaches_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD_", "LVM_SYSTEM_DIR", "PATH", "LC_ALL", "LANG", "SECRET"):
        monkeypatch.setenv(name, "/nowhere")
    assert sorted(said("env").splitlines()) == ["LC_ALL=C", f"PATH={PATH}"]


def test_what_the_caller_adds_reaches_it() -> None:
    assert sorted(said("env", env={"A": "b"}).splitlines()) == ["A=b", "LC_ALL=C", f"PATH={PATH}"]


def test_a_program_is_looked_for_on_the_fixed_path_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sealed-local-tool"
    program.write_text("#!/bin/sh\necho planted\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{PATH}")
    with pytest.raises(ToolFailed, match="not found on PATH"):
        said("sealed-local-tool")


def test_a_command_inherits_only_the_descriptors_that_are_handed_over(tmp_path: Path) -> None:
    kept, handed = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("kept", "handed"))
    try:
        for descriptor in (kept, handed):
            os.set_inheritable(descriptor, True)
        shown = said("sh", "-c", "for f in /proc/$$/fd/*; do readlink $f; done; true", pass_fds=(handed,))
    finally:
        os.close(kept)
        os.close(handed)
    assert str(tmp_path / "handed") in shown
    assert str(tmp_path / "kept") not in shown


@pytest.mark.parametrize("given", [b"text", Secret(b"text")])
def test_standard_input_is_what_was_given_and_ends(given: bytes | Secret) -> None:
    assert said("cat", stdin=given) == "text"


def test_a_status_that_the_caller_does_not_expect_is_an_error() -> None:
    with pytest.raises(CommandError, match="told why"):
        said("sh", "-c", "echo told why >&2; exit 3")
    assert said("sh", "-c", "echo fine; exit 3", ok=(0, 3)) == "fine\n"


def ends(pid: int) -> bool:
    """Whether a process is gone, or dead and only not yet waited for."""
    for _ in range(1000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("stdin", [b"", b"given"], ids=["given nothing", "given something"])
@pytest.mark.parametrize(
    ("cause", "raised"),
    [(subprocess.TimeoutExpired("sh", 1), CommandTimeout), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["time is up", "interrupted"],
)
def test_a_command_that_is_given_up_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException, raised: type[BaseException], stdin: bytes
) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! $$ > {pids}.new; mv {pids}.new {pids}; wait"

    class GivenUp(subprocess.Popen[bytes]):
        """Its first wait ends when the command and its child are there, whatever the clock says."""

        given_up = False

        def communicate(self, *given: Any, **more: Any) -> Any:
            if not self.given_up:
                self.given_up = True
                while not pids.exists():
                    time.sleep(0.01)
                raise cause
            return super().communicate(*given, **more)

    def given_up(*_: Any) -> None:
        while not pids.exists():
            time.sleep(0.01)
        raise cause

    monkeypatch.setattr(command.subprocess, "Popen", GivenUp if stdin else subprocess.Popen)
    monkeypatch.setattr(command, "_wait", given_up)
    with pytest.raises(raised):
        LocalRunner().run(["sh", "-c", script], timeout=100, stdin=stdin)
    assert all(ends(int(pid)) for pid in pids.read_text().split())


def test_where_the_kernel_has_no_descriptors_of_processes_their_end_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(command.os, "pidfd_open", none)
    assert LocalRunner().run(["sh", "-c", "echo out; echo err >&2"], timeout=100).stdout == b"out\n"
    with pytest.raises(CommandTimeout):
        LocalRunner().run(["sleep", "100"], timeout=0.1)


def test_a_command_ends_in_time_though_a_child_of_it_goes_on_with_its_output_open() -> None:
    began = time.monotonic()
    assert LocalRunner().run(["sh", "-c", "sleep 60 & echo out"], timeout=100).stdout == b"out\n"
    assert time.monotonic() - began < 30
