"""LVM by its command line: one function a verb, every setting of ours with its reason, one command at a time.

LVM's own exit status 5 means nearly anything, so callers look first (`report`) and plan; an error here is one to show.
A command that writes is never ended because a caller lost patience: half-made volumes come from that.
"""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from csi.core import disks
from csi.core.command import Result, Runner
from csi.core.errors import CommandEnded, CommandError, Refused, SealedLocalError, ToolFailed, Unavailable
from csi.node import caller
from csi.node.lvm import dm_name, failures, settings
from csi.node.lvm import report as lvm_report
from csi.node.lvm.model import Report
from csi.node.lvm.system_dir import SystemDirs

_log = logging.getLogger(__name__)

_READ_SECONDS = 60.0
_WRITE_SECONDS = 600.0
_TURN_POLL_SECONDS = 0.25

_REPORT = (
    "fullreport", "--reportformat", "json", "--units", "b", "--nosuffix",
    "--configreport", "vg", "-o", lvm_report.VG_FIELDS,
    "--configreport", "pv", "-o", lvm_report.PV_FIELDS,
    "--configreport", "lv", "-o", lvm_report.LV_FIELDS,
    "--configreport", "pvseg", "-o", lvm_report.PV_SEGMENT_FIELDS,
    "--configreport", "seg", "-o", "seg_start",
)  # fmt: skip
_ENVIRONMENT = {"LVM_SUPPRESS_FD_WARNINGS": "1"}


class Lvm:
    """LVM of this node. `lock_file` makes two driver processes take turns; threads wait for one another inside.

    Of all loop devices it sees those among `pool_disks`; all of them with `loop_devices`.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        udev: bool,
        lock_file: Path,
        loop_devices: bool = False,
        pool_disks: Sequence[str] = (),
    ) -> None:
        self._runner = runner
        named = None if loop_devices else settings.named_loop_devices(pool_disks)
        self._settings = settings.text(udev=udev, loop_devices=named)
        self._settings_with_hints = settings.text(udev=udev, loop_devices=named, hints=True)
        self._system_dirs = SystemDirs(lock_file.parent)
        self._lock_file = lock_file
        self._lock = threading.Lock()
        self._holder = ""
        self._turn = threading.local()
        self._last: tuple[float, Report] | None = None

    @contextmanager
    def exclusive(
        self, holder: str, wait_seconds: float = 300.0, still_wanted: Callable[[], bool] = caller.still_waits
    ) -> Iterator[None]:
        """Hold this node's LVM for a look, a plan and its steps. `holder` is named to whoever waits in vain.

        Raises `Unavailable` when the turn doesn't come in time, or `still_wanted` says no before it comes: calls whose
        callers have given up must not fill the server's threads.
        """
        arrived = time.monotonic()
        self._await_turn(arrived + wait_seconds, wait_seconds, still_wanted)
        try:
            self._holder = holder
            descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _flock(descriptor, self._lock_file, wait_seconds, still_wanted)
                self._turn.arrived = arrived
                yield
            finally:
                self._turn.arrived = None
                os.close(descriptor)
        finally:
            self._lock.release()

    def _await_turn(self, give_up: float, wait_seconds: float, still_wanted: Callable[[], bool]) -> None:
        while not self._lock.acquire(timeout=max(0.0, min(_TURN_POLL_SECONDS, give_up - time.monotonic()))):
            _require_wanted(still_wanted, self._holder)
            if time.monotonic() >= give_up:
                raise Unavailable(
                    f"LVM is busy with {self._holder!r} for more than {wait_seconds:g} s; try again later"
                )

    def report(self) -> Report:
        """All volume groups, disks and volumes as LVM sees them now.

        Calls that queued for their turn together share one look: a report that began after a call arrived, with no change
        of ours since, tells that call all that it could have seen by looking itself.
        """
        arrived = getattr(self._turn, "arrived", None)
        last = self._last
        if arrived is not None and last is not None and last[0] >= arrived:
            return last[1]
        began = time.monotonic()
        report = lvm_report.parse(*self._look())
        if arrived is not None:
            self._last = (began, report)
        return report

    def _look(self) -> tuple[bytes, bytes]:
        """LVM's report alone, and what LVM wrote to standard error meanwhile. Standard output also carries what LVM says of
        damaged disks, in the middle of the JSON.

        A file in memory, not a pipe: nobody has to read it while LVM writes.
        """
        descriptor = os.memfd_create("lvm-report")
        with os.fdopen(descriptor, "rb") as written:
            own = {"LVM_REPORT_FD": str(descriptor)}
            done = self._run(_REPORT, _READ_SECONDS, environment=own, pass_fds=(descriptor,))
            written.seek(0)
            return written.read(), done.stderr

    def create(
        self,
        vg: str,
        name: str,
        *,
        extents: int,
        tags: Sequence[str],
        stripes: int = 1,
        stripe_kib: int | None = None,
        pvs: Sequence[str] = (),
    ) -> None:
        """Make an inactive LV with its tags in one metadata change. Nothing is zeroed: the first stage does that.

        Raises `NoSpace` where LVM will not allocate in this group. After any failure it is looked whether the volume is
        there after all; only when that can't be told either, a volume may be there that the caller doesn't know.
        """
        argv = ["lvcreate", "--yes", "--name", name, "--extents", str(extents)]
        argv += ["--activate", "n", "--zero", "n", "--wipesignatures", "n"]
        for tag in tags:
            argv += ["--addtag", tag]
        if stripes > 1:
            argv += ["--stripes", str(stripes)]
            argv += ["--stripesize", f"{stripe_kib}k"] if stripe_kib is not None else []
        try:
            self._change([*argv, vg, *pvs])
        except CommandEnded as error:
            if not self._was_made(vg, name, tags, error):
                raise
        except CommandError as error:
            if not self._was_made(vg, name, tags, error):
                raise failures.of_allocation(vg, error) from error

    def _was_made(self, vg: str, name: str, tags: Sequence[str], failure: ToolFailed) -> bool:
        """Whether a failed `lvcreate` made the volume all the same.

        Raises `Unavailable` when nobody can tell: the claim's provisioner must not take the failure as the last word.
        """
        try:
            found = [lv for lv in self.report().lvs if (lv.vg, lv.name) == (vg, name)]
        except SealedLocalError as error:
            raise Unavailable(
                f"whether {vg}/{name} was made is not known ({failure}; then: {error}); a repeat will find it or make it"
            ) from error
        made = any(lv.tags >= frozenset(tags) for lv in found)
        if made:
            _log.warning(
                "lvcreate failed, and the volume is there", extra={"lv": f"{vg}/{name}", "error": str(failure)}
            )
        return made

    def remove(self, vg: str, name: str) -> None:
        """Remove an inactive LV."""
        self._change_lv(["lvremove", "--yes", f"{vg}/{name}"])

    def change_tags(self, vg: str, name: str, *, remove: Sequence[str], add: Sequence[str]) -> None:
        """Change tags of an LV in one metadata change."""
        argv = ["lvchange", "--yes"]
        for tag in remove:
            argv += ["--deltag", tag]
        for tag in add:
            argv += ["--addtag", tag]
        self._change_lv([*argv, f"{vg}/{name}"])

    def activate(self, vg: str, name: str) -> None:
        """Make the kernel device, and see that the LV's path in /dev leads to that very device.

        `vgmknodes` brings back an entry that a restart of udev or of the pod lost, and mends one that is left over from
        another time. Raises `Refused` when it doesn't: writing through a wrong path would destroy another volume.
        """
        self._change_lv(["lvchange", "--yes", "--activate", "y", "--ignoreactivationskip", f"{vg}/{name}"])
        device = disks.mapped(dm_name.encode(vg, name))
        if device is None:
            raise ToolFailed(f"LVM says that {vg}/{name} is active, and the kernel has no such device")
        path = f"/dev/{vg}/{name}"
        if disks.leads_to(path) != device:
            self._change(["vgmknodes", f"{vg}/{name}"])
        if disks.leads_to(path) != device:
            raise Refused(
                f"{path} does not lead to the volume's device {device}; look at `ls -l {path}` and "
                f"`dmsetup ls`, remove the stale entry, then repeat"
            )

    def deactivate(self, vg: str, name: str) -> None:
        """Take the kernel device away. A virtual machine may close it a moment late: LVM itself waits 5 s for that.

        Raises `InUse` when it stays open.
        """
        self._change_lv(["lvchange", "--yes", "--activate", "n", f"{vg}/{name}"])

    def create_vg(self, vg: str, devices: Sequence[str]) -> None:
        """Make a volume group of blank devices; LVM itself refuses one with a signature, as it is never told to force."""
        self._change(["vgcreate", vg, *devices], hints=True)

    def extend_vg(self, vg: str, devices: Sequence[str]) -> None:
        """Add blank devices to a volume group."""
        self._change(["vgextend", vg, *devices], hints=True)

    def version(self) -> str:
        """LVM's own version line. Raises `ToolFailed` when lvm is not installed, or doesn't read the settings of ours."""
        self._require_settings()
        first = self._run(["version"], _READ_SECONDS).text.partition("\n")[0]
        return first.split(":", 1)[-1].strip() or "unknown"

    def _require_settings(self) -> None:
        try:
            self._run(["lvmconfig", "devices/global_filter"], _READ_SECONDS)
        except CommandError as error:
            folder = self._system_dirs.holding(self._settings)
            raise ToolFailed(
                f"LVM does not read {folder}/lvm.conf, without which it must not run; with --lvm-prefix the state "
                f"directory must lie at the same path where LVM runs ({error})"
            ) from error

    def _change_lv(self, argv: Sequence[str]) -> None:
        try:
            self._change(argv)
        except CommandError as error:
            raise failures.of_change(error) from error

    def _change(self, argv: Sequence[str], *, hints: bool = False) -> None:
        try:
            self._run(argv, _WRITE_SECONDS, hints=hints)
        finally:
            self._last = None

    def _run(
        self,
        argv: Sequence[str],
        timeout: float,
        *,
        hints: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
        pass_fds: Sequence[int] = (),
    ) -> Result:
        folder = self._system_dirs.holding(self._settings_with_hints if hints else self._settings)
        own = {**_ENVIRONMENT, **environment, "LVM_SYSTEM_DIR": str(folder)}
        # stdin is empty, so a prompt that --yes does not answer ends the command instead of hanging it.
        return self._runner.run(["lvm", *argv], timeout=timeout, env=own, pass_fds=pass_fds)


def _require_wanted(still_wanted: Callable[[], bool], holder: str) -> None:
    if not still_wanted():
        raise Unavailable(f"the caller went away while LVM was busy with {holder!r}; nothing was done")


def _flock(descriptor: int, path: Path, wait_seconds: float, still_wanted: Callable[[], bool]) -> None:
    give_up = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise Unavailable(f"another driver process holds {path}; end it, or wait for it to end") from None
            _require_wanted(still_wanted, "another driver process")
            time.sleep(0.05)
        else:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"pid": os.getpid()}).encode())
            return
