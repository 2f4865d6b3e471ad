"""LVM by its command line: one function a verb, every setting of ours with its reason, one command at a time.

LVM's own exit status 5 means nearly anything, so callers look first (`report`) and plan; an error here is one to show.
A command that writes is never ended because a caller lost patience: half-made volumes come from that.
"""

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from csi.core import disks
from csi.core.command import Result, Runner
from csi.core.errors import CommandError, InUse, Refused, ToolFailed, Unavailable
from csi.node import caller
from csi.node.lvm import dm_name
from csi.node.lvm import report as lvm_report
from csi.node.lvm.model import Report

_READ_SECONDS = 60.0
_WRITE_SECONDS = 600.0
_FAILED = 5
_TURN_POLL_SECONDS = 0.25
_LOOP_DEVICE = re.compile(r"/dev/loop[0-9]+(p[0-9]+)?")


def _filter(loop_devices: Sequence[str] | None) -> str:
    """The disks that LVM may look at: all but those below.

    LVM takes a device when any of its names meets an accepting pattern, and udev gives every device names such as
    /dev/block/43:0. So nothing accepts all names at the end: LVM takes what meets no pattern anyway.
    """
    # Network and replicated devices can freeze a scan for ever when their peer is gone.
    patterns = ["r|^/dev/drbd|", "r|^/dev/nbd|", "r|^/dev/rbd|", "r|^/dev/zram|"]
    if loop_devices is not None:
        # kubelet attaches a loop device to every raw block volume, and what lies on it the tenant has written.
        patterns += [*(f"a|^{device}$|" for device in loop_devices), "r|^/dev/loop|"]
    return f"[{','.join(json.dumps(pattern) for pattern in patterns)}]"


def _settings(*, udev: bool, loop_devices: Sequence[str] | None = ()) -> str:
    """LVM settings for every command, independent of the host's lvm.conf where that could harm."""
    on = int(udev)
    return " ".join(
        (
            # A devices file that appears by itself would make the filter useless and hide disks.
            "devices/use_devicesfile=0",
            f"devices/obtain_device_list_from_udev={on}",
            # Never look for PVs inside volumes: tenants write there.
            "devices/scan_lvs=0",
            f"devices/global_filter={_filter(loop_devices)}",
            # To read a suspended device is to wait for whoever resumes it, perhaps for ever.
            "devices/ignore_suspended_devices=1",
            # Waiting for udev in a container without the host's IPC namespace never ends.
            f"activation/udev_sync={on}",
            f"activation/udev_rules={on}",
            # dmeventd can't be started from a container.
            "activation/monitoring=0",
            # The archive in /etc/lvm belongs to the host's administrator.
            "backup/archive=0",
            "backup/backup=0",
            "log/silent=0",
        )
    )


_NO_HINTS = 'devices/hints="none"'
"""Hints go stale when disks come and go; a scan costs milliseconds. Only commands that make PVs must not say so: they are
what tells the hints of the administrator's own commands that they are stale."""

_REPORT = (
    "fullreport", "--reportformat", "json", "--units", "b", "--nosuffix",
    "--configreport", "vg", "-o", lvm_report.VG_FIELDS,
    "--configreport", "pv", "-o", lvm_report.PV_FIELDS,
    "--configreport", "lv", "-o", lvm_report.LV_FIELDS,
    "--configreport", "pvseg", "-o", "pvseg_start",
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
        named = [disk for disk in pool_disks if _LOOP_DEVICE.fullmatch(disk)]
        self._config = _settings(udev=udev, loop_devices=None if loop_devices else named)
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
        report = lvm_report.parse(self._look())
        if arrived is not None:
            self._last = (began, report)
        return report

    def _look(self) -> bytes:
        """LVM's report alone: standard output also carries what LVM says of damaged disks, in the middle of the JSON.

        A file in memory, not a pipe: nobody has to read it while LVM writes.
        """
        descriptor = os.memfd_create("lvm-report")
        with os.fdopen(descriptor, "rb") as written:
            own = {**_ENVIRONMENT, "LVM_REPORT_FD": str(descriptor)}
            self._run(_REPORT, _READ_SECONDS, environment=own, pass_fds=(descriptor,))
            written.seek(0)
            return written.read()

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
        """Make an inactive LV with its tags in one metadata change. Nothing is zeroed: the first stage does that."""
        argv = ["lvcreate", "--yes", "--name", name, "--extents", str(extents)]
        argv += ["--activate", "n", "--zero", "n", "--wipesignatures", "n"]
        for tag in tags:
            argv += ["--addtag", tag]
        if stripes > 1:
            argv += ["--stripes", str(stripes)]
            argv += ["--stripesize", f"{stripe_kib}k"] if stripe_kib is not None else []
        self._change([*argv, vg, *pvs])

    def remove(self, vg: str, name: str) -> None:
        """Remove an inactive LV."""
        self._change(["lvremove", "--yes", f"{vg}/{name}"])

    def change_tags(self, vg: str, name: str, *, remove: Sequence[str], add: Sequence[str]) -> None:
        """Change tags of an LV in one metadata change."""
        argv = ["lvchange", "--yes"]
        for tag in remove:
            argv += ["--deltag", tag]
        for tag in add:
            argv += ["--addtag", tag]
        self._change([*argv, f"{vg}/{name}"])

    def activate(self, vg: str, name: str) -> None:
        """Make the kernel device, and see that the LV's path in /dev leads to that very device.

        `vgmknodes` brings back an entry that a restart of udev or of the pod lost, and mends one that is left over from
        another time. Raises `Refused` when it doesn't: writing through a wrong path would destroy another volume.
        """
        self._change(["lvchange", "--yes", "--activate", "y", "--ignoreactivationskip", f"{vg}/{name}"])
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

    def deactivate(self, vg: str, name: str, *, patience_seconds: float = 5.0) -> None:
        """Take the kernel device away. A virtual machine may close it a moment late, so busy is tried again for a while.

        Raises `InUse` when it stays open.
        """
        give_up = time.monotonic() + patience_seconds
        while True:
            try:
                self._change(["lvchange", "--yes", "--activate", "n", f"{vg}/{name}"])
            except CommandError as error:
                if error.returncode != _FAILED or "in use" not in error.stderr:
                    raise
                if time.monotonic() > give_up:
                    raise InUse(f"{vg}/{name} stays open; end the process or virtual machine that holds it") from error
                time.sleep(0.25)
            else:
                return

    def create_vg(self, vg: str, devices: Sequence[str]) -> None:
        """Make a volume group of blank devices; LVM itself refuses one with a signature, as it is never told to force."""
        self._change(["vgcreate", vg, *devices], hints=True)

    def extend_vg(self, vg: str, devices: Sequence[str]) -> None:
        """Add blank devices to a volume group."""
        self._change(["vgextend", vg, *devices], hints=True)

    def version(self) -> str:
        """LVM's own version line. Raises `ToolFailed` when lvm is not installed."""
        first = self._run(["version"], _READ_SECONDS).text.partition("\n")[0]
        return first.split(":", 1)[-1].strip() or "unknown"

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
        environment: Mapping[str, str] = _ENVIRONMENT,
        pass_fds: Sequence[int] = (),
    ) -> Result:
        config = self._config if hints else f"{self._config} {_NO_HINTS}"
        # stdin is empty, so a prompt that --yes does not answer ends the command instead of hanging it.
        full = ["lvm", argv[0], "--config", config, *argv[1:]]
        return self._runner.run(full, timeout=timeout, env=environment, pass_fds=pass_fds)


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
