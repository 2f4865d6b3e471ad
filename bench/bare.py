"""The bare tools, timed inside the node: what each job costs without a driver. Every function returns seconds."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csi.core.command import LocalRunner
from csi.core.filesystem import Filesystem
from csi.core.filesystems import make

_VG = "vg0"
_PATIENCE_SECONDS = 30.0


def lvcreate(name: str, size_bytes: int, active: bool = False) -> float:
    """The allocation that CreateVolume needs: nothing zeroed, inactive or left active."""
    return _timed([_lvcreate(name, size_bytes, active)])


def lvcreate_many(prefix: str, count: int, size_bytes: int, active: bool) -> float:
    """As many at once; seconds until the last one has ended."""
    started = time.monotonic()
    program = shutil.which("lvcreate")
    children = [
        subprocess.Popen(_lvcreate(f"{prefix}-{n}", size_bytes, active), executable=program, stdout=subprocess.DEVNULL)
        for n in range(count)
    ]
    statuses = [child.wait() for child in children]
    if any(statuses):
        raise RuntimeError("lvcreate failed")
    return time.monotonic() - started


def _lvcreate(name: str, size_bytes: int, active: bool) -> list[str]:
    left = ["--activate", "y" if active else "n"]
    return [
        "lvcreate",
        "--yes",
        "--name",
        name,
        "--size",
        f"{size_bytes}b",
        *left,
        "--zero",
        "n",
        "--wipesignatures",
        "n",
        _VG,
    ]


def lvremove(name: str) -> float:
    """The end of a volume that need not be wiped."""
    return _timed([["lvremove", "--yes", f"{_VG}/{name}"]])


def wipe_and_remove(name: str, activate: bool) -> float:
    """The end of a volume with content: what it becomes is noted, the content is overwritten, it is removed."""
    tag = ["lvchange", "--yes", "--addtag", "bench-deleting", f"{_VG}/{name}"]
    wipe = ["blkdiscard", "--force", "--zeroout", f"/dev/{_VG}/{name}"]
    return _timed([tag, *_activation(name, activate), wipe, ["lvremove", "--yes", f"{_VG}/{name}"]])


def remove_many(names: Sequence[str]) -> None:
    """Take volumes away; their time doesn't count."""
    _timed([["lvremove", "--yes", *(f"{_VG}/{name}" for name in names)]])


def first_stage(name: str, activate: bool) -> float:
    """What first stage and publish can't do without: activate, mkfs with the driver's own options, tag, mount, bind."""
    folder = _folder(name)
    active = _timed(_activation(name, activate))
    started = time.monotonic()
    make(LocalRunner(), f"/dev/{_VG}/{name}", Filesystem.EXT4)
    made = time.monotonic() - started
    tag = ["lvchange", "--yes", "--addtag", "bench", f"{_VG}/{name}"]
    return active + made + _timed([tag, *_mounts(name, folder)])


def later_stage(name: str, activate: bool) -> float:
    """Activate, check and mount a volume that was used before, and bind it."""
    check = ["e2fsck", "-p", f"/dev/{_VG}/{name}"]
    return _timed([*_activation(name, activate), check, *_mounts(name, _folder(name))])


def unstage(name: str, deactivate: bool) -> float:
    """Take both mounts away, and maybe deactivate."""
    folder = _folder(name)
    off = [["lvchange", "--yes", "--activate", "n", f"{_VG}/{name}"]] if deactivate else []
    return _timed([["umount", folder + "-bound"], ["umount", folder], *off])


def _activation(name: str, wanted: bool) -> list[list[str]]:
    return [["lvchange", "--yes", "--activate", "y", f"{_VG}/{name}"]] if wanted else []


def _folder(name: str) -> str:
    folder = f"/run/bench/{name}"
    for path in (folder, folder + "-bound"):
        Path(path).mkdir(parents=True, exist_ok=True)
    return folder


def _mounts(name: str, folder: str) -> list[list[str]]:
    return [["mount", "-t", "ext4", f"/dev/{_VG}/{name}", folder], ["mount", "--bind", folder, folder + "-bound"]]


def calls(socket: str, method: str, request: dict[str, Any], count: int) -> float:
    """The median of as many calls, one after the other, made inside the node."""
    from lab import csi_calls

    answers = [csi_calls.call(socket, method, request) for _ in range(count)]
    bad = [answer for answer in answers if answer["code"] != "OK"]
    if bad:
        raise RuntimeError(f"{method} answers {bad[0]}")
    return statistics.median(float(answer["seconds"]) for answer in answers)


def luks_volume(name: str, key_file: str) -> None:
    """A LUKS2 volume of the sealed profile's cipher, for `luks_open_and_mount`."""
    device = f"/dev/{_VG}/{name}"
    Path(key_file).write_bytes(os.urandom(32))
    options = ["--cipher", "aes-xts-plain64", "--key-size", "512", "--sector-size", "4096"]
    pbkdf = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    _timed([["cryptsetup", "luksFormat", "-q", "--type", "luks2", *options, *pbkdf, "--key-file", key_file, device]])
    _timed([["cryptsetup", "open", "--key-file", key_file, device, "bench"]])
    make(LocalRunner(), "/dev/mapper/bench", Filesystem.EXT4)
    _timed([["cryptsetup", "close", "bench"]])


def luks_open_and_mount(name: str, key_file: str, folder: str) -> float:
    """cryptsetup open with a key that is already there, and mount."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    opened = ["cryptsetup", "open", "--key-file", key_file, f"/dev/{_VG}/{name}", "bench"]
    return _timed([opened, ["mount", "-t", "ext4", "/dev/mapper/bench", folder]])


def command(argv: Sequence[str]) -> float:
    """Any one command."""
    return _timed([argv])


def undo(commands: Sequence[Sequence[str]]) -> None:
    """Commands whose time doesn't count."""
    _timed(commands)


def python_start(modules: str) -> float:
    """How long an interpreter takes that only imports the modules, separated by commas."""
    return _timed([[sys.executable, "-c", f"import {modules}"]])


def memory(pid: int) -> dict[str, int]:
    """Resident memory of a process in KiB and the number of its threads."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {"rss": int(values["VmRSS"].split()[0]), "threads": int(values["Threads"])}


def seconds_until_serving(argv: Sequence[str], log: str, socket: str) -> dict[str, float]:
    """Start the node plugin; returns its process id, the seconds until it answers a call, and until it is ready."""
    from lab import csi_calls

    pid, answering, started = _until_answering(argv, log, socket)
    csi_calls.ready(socket)
    return {"pid": pid, "answering": answering, "ready": time.monotonic() - started}


def seconds_until_answering(argv: Sequence[str], log: str, socket: str) -> float:
    """Start the node plugin, wait until it answers a call, and end it."""
    from lab import csi_calls, inside

    pid, answering, _ = _until_answering(argv, log, socket)
    csi_calls.forget(socket)
    inside.kill(pid)
    inside.wait(pid)
    return answering


def _until_answering(argv: Sequence[str], log: str, socket: str) -> tuple[int, float, float]:
    """Process id, seconds, and when it was started. Waits for the socket cheaply: a busy wait would slow what it times."""
    from lab import csi_calls, inside

    Path(socket).unlink(missing_ok=True)
    started = time.monotonic()
    pid = inside.spawn(list(argv), log)
    while not Path(socket).exists():
        if time.monotonic() - started > _PATIENCE_SECONDS:
            raise TimeoutError(f"{' '.join(argv)} does not answer; see {log}")
        time.sleep(0.01)
    answer = csi_calls.call(socket, "GetPluginInfo", {}, _PATIENCE_SECONDS)
    if answer["code"] != "OK":
        raise RuntimeError(f"the driver answers {answer}")
    return pid, time.monotonic() - started, started


def _timed(commands: Sequence[Sequence[str]]) -> float:
    started = time.monotonic()
    for argv in commands:
        # In the lab each folder of PATH without the program costs milliseconds; a shell knows where it is.
        program = shutil.which(argv[0])
        done = subprocess.run(argv, executable=program, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace')}")
    return time.monotonic() - started
