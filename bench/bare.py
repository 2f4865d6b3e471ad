"""The bare tools, timed inside the node: what each job costs without a driver. Every function returns seconds."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from csi.core.command import LocalRunner
from csi.core.filesystems import Filesystem, make

_VG = "vg0"
_PATIENCE_SECONDS = 30.0


def lvcreate(name: str, size_bytes: int) -> float:
    """The allocation that CreateVolume needs: inactive, nothing zeroed."""
    argv = ["lvcreate", "--yes", "--name", name, "--size", f"{size_bytes}b"]
    return _timed([[*argv, "--activate", "n", "--zero", "n", "--wipesignatures", "n", _VG]])


def mkfs_and_mount(name: str, folder: str) -> float:
    """mkfs with the driver's own options on an active LV, and one mount."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    make(LocalRunner(), f"/dev/{_VG}/{name}", Filesystem.EXT4)
    return time.monotonic() - started + _timed([["mount", "-t", "ext4", f"/dev/{_VG}/{name}", folder]])


def all_commands_of_a_first_stage(name: str, folder: str) -> float:
    """What first stage and publish can't do without: activate, mkfs, tag, mount, bind."""
    active = _timed([["lvchange", "--yes", "--activate", "y", f"{_VG}/{name}"]])
    made = mkfs_and_mount(name, folder)
    Path(folder + "-bound").mkdir(parents=True, exist_ok=True)
    tag = ["lvchange", "--yes", "--addtag", "bench", f"{_VG}/{name}"]
    return active + made + _timed([tag, ["mount", "--bind", folder, folder + "-bound"]])


def mount_again(name: str, folder: str) -> float:
    """Activate, check and mount a volume that was used before, and bind it."""
    device = f"/dev/{_VG}/{name}"
    return _timed(
        [
            ["lvchange", "--yes", "--activate", "y", f"{_VG}/{name}"],
            ["e2fsck", "-p", device],
            ["mount", "-t", "ext4", device, folder],
            ["mount", "--bind", folder, folder + "-bound"],
        ]
    )


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
    """Resident memory of a process in KiB: all of it, and the part that it shares with nobody."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {"rss": int(values["VmRSS"].split()[0]), "private": int(values["RssAnon"].split()[0])}


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
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace')}")
    return time.monotonic() - started
