"""How an LVM command is run: with settings of ours alone, away from disks that it need not look at, for a bounded time."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from csi.core.command import Result, Runner
from csi.core.errors import CommandError, ToolFailed
from csi.node.lvm import settings
from csi.node.lvm.filters import DeviceFilter
from csi.node.lvm.system_dir import SystemDirs

_UDEV_SOCKET: Final = Path("/run/udev/control")
_ENVIRONMENT: Final = {"LVM_SUPPRESS_FD_WARNINGS": "1"}


class LvmProcess:
    """Runs `lvm`. `state_dir` is where the folders of settings lie; `elsewhere` says that it runs among other files."""

    def __init__(
        self, runner: Runner, *, udev: bool, device_filter: DeviceFilter, state_dir: Path, elsewhere: bool = False
    ) -> None:
        self._runner = runner
        self._udev = udev
        self._filter = device_filter
        self._elsewhere = elsewhere
        self._system_dirs = SystemDirs(state_dir)

    def run(
        self,
        argv: Sequence[str],
        timeout: float,
        *,
        hints: bool = False,
        without: Iterable[str] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
        pass_fds: Sequence[int] = (),
    ) -> Result:
        """Run one verb; `without` are disks that it must not look at. See `Runner.run` for what it raises."""
        patterns = tuple(self.patterns(without))
        text = settings.text(udev=self._udev, patterns=patterns, hints=hints, listed=self._is_listed())
        own = {**_ENVIRONMENT, **environment, "LVM_SYSTEM_DIR": str(self._system_dirs.holding(text))}
        # stdin is empty, so a prompt that --yes does not answer ends the command instead of hanging it.
        return self._runner.run(["lvm", *argv], timeout=timeout, env=own, pass_fds=pass_fds)

    def _is_listed(self) -> bool:
        """Whether a udev runs here whose names LVM can read: its socket is beside them. Elsewhere nobody knows."""
        return not self._elsewhere and _UDEV_SOCKET.exists()

    def said(self, argv: Sequence[str], timeout: float, *, without: Iterable[str] = ()) -> tuple[bytes, bytes]:
        """A report alone, and what LVM wrote to standard error meanwhile. Standard output also carries what LVM says of
        damaged disks, in the middle of the JSON.

        A file in memory, not a pipe: nobody has to read it while LVM writes.
        """
        descriptor = os.memfd_create("lvm-report")
        with os.fdopen(descriptor, "rb") as written:
            own = {"LVM_REPORT_FD": str(descriptor)}
            done = self.run(argv, timeout, without=without, environment=own, pass_fds=(descriptor,))
            written.seek(0)
            return written.read(), done.stderr

    def patterns(self, without: Iterable[str] = ()) -> list[str]:
        """The filter of devices as it is now: links that the configuration names may lead elsewhere tomorrow."""
        resolved = [os.path.realpath(disk) for disk in self._filter.disks]
        return self._filter.patterns(resolved, without)

    def require_settings(self, timeout: float) -> None:
        """Raises `ToolFailed` unless LVM reads the settings of ours."""
        try:
            self.run(["lvmconfig", "devices/global_filter"], timeout)
        except CommandError as error:
            raise ToolFailed(
                "LVM does not read the driver's lvm.conf, without which it must not run; with --lvm-prefix the state "
                f"directory must lie at the same path where LVM runs ({error})"
            ) from error
