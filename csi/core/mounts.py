"""Unmounting and looking at mounts. The kernel's own list is the truth, never a return value of before."""

import errno
import os
import stat
from pathlib import Path

from csi.core import kernel_mounts, process
from csi.core.command import Runner
from csi.core.errors import InUse, Refused
from csi.core.mount import Mount

_TIMEOUT_SECONDS = 120.0


def listed(mountinfo: Path = Path("/proc/self/mountinfo")) -> tuple[Mount, ...]:
    """Every mount that this process sees."""
    # Not read_text(): it would turn a carriage return in a name, which the kernel doesn't escape, into a line's end.
    return kernel_mounts.parse(mountinfo.read_bytes().decode(errors="surrogateescape"))


def at(target: str) -> tuple[Mount, ...]:
    """The mounts on exactly this path, lowest first; empty when it is not a mount point."""
    return tuple(mount for mount in listed() if mount.target == target)


def sync(target: str) -> None:
    """Write back everything of the filesystem that is mounted there. Raises `OSError`, see `process.write_back`."""
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        process.write_back(descriptor)
    finally:
        os.close(descriptor)


def make_read_only(runner: Runner, target: str) -> None:
    """Write back and make the whole filesystem read-only. Raises `CommandError` while files are open for writing."""
    runner.run(["mount", "--no-mtab", "-o", "remount,ro", "--", target], timeout=_TIMEOUT_SECONDS)


def unmount(runner: Runner, target: str) -> None:
    """Unmount everything on exactly this path. Raises `InUse` when something is busy; a path without mounts is fine."""
    for _ in range(len(at(target))):
        result = runner.run(["umount", "--", target], timeout=_TIMEOUT_SECONDS, ok=(0, 1, 32))
        if result.returncode != 0 and at(target):
            said = result.stderr.decode(errors="backslashreplace").strip()
            raise InUse(
                f"{target} can't be unmounted: {said}. End the processes that use it; the call is then repeated."
            )


def remove_directory(path: str) -> None:
    """Remove an empty directory or an empty plain file; absent is fine.

    Raises `Refused` when it holds anything: what a pod wrote there is somebody's data, so it is never removed.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        _remove_empty_directory(path)
        return
    if not stat.S_ISREG(mode) or os.lstat(path).st_size > 0:
        raise Refused(f"{path} is not an empty file; it is left alone. Look at it and remove it by hand.")
    Path(path).unlink()


def _remove_empty_directory(path: str) -> None:
    try:
        Path(path).rmdir()
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUse(f"{path} is a mount point, here or in another mount namespace; unmount it there") from error
        names = ", ".join(sorted(entry.name for entry in Path(path).iterdir())[:5])
        raise Refused(
            f"{path} can't be removed ({error.strerror}); it holds: {names or 'nothing visible'}. A pod may have written "
            "there while its volume was missing. Save what is needed, empty the directory, and the call is repeated."
        ) from error
