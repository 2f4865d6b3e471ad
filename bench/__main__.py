"""`make bench`: the driver against the bare tools, in one lab run, as ratios. Writes build/bench.json, too.

Rounds alternate between the two sides, so that a machine that slows down slows both. Numbers are medians. In User-mode
Linux starting a process is slow (a fifth to half a second for LVM), so ratios there count processes more than work.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench import bare
from lab.driver import MIB, Driver, mount_capability
from lab.node import REPOSITORY, LabUnavailable, Node, pick
from lab.sealed import Broker, init_data

_ROUNDS = 7
_SIZE = 64 * MIB
_CAPABILITY = mount_capability("ext4")
_REPORT = REPOSITORY / "build" / "bench.json"
_POLICY = "/run/bench/initdata.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measurement: ours beside its baseline, or a plain value with its target."""

    what: str
    ours: float
    baseline: float | None
    unit: str
    target: float | None

    @property
    def value(self) -> float:
        """The ratio, or the plain value where there is no baseline."""
        return self.ours if self.baseline is None else self.ours / self.baseline

    def __str__(self) -> str:
        verdict = "" if self.target is None else ("  met" if self.value <= self.target else "  MISSED")
        target = (
            ""
            if self.target is None
            else f"target {self.target:g}{'x' if self.baseline is not None else ' ' + self.unit}"
        )
        if self.baseline is None:
            return f"{self.what:<64} {self.ours:8.2f} {self.unit:<3} {'':>16} {target}{verdict}"
        both = f"{self.ours:8.2f} {self.unit:<3} / {self.baseline:8.2f} {self.unit}"
        return f"{self.what:<64} {both}  = {self.value:5.2f}x  {target}{verdict}"


class Bench:
    """All measurements on one booted node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.driver = Driver(node, {"pools": [{"name": "main", "vgs": ["vg0"]}]})
        self.lines: list[Line] = []

    def run(self) -> None:
        """Everything, one line after the other."""
        self.node.run(["vgcreate", "-q", "vg0", *self.node.disks])
        self._start()
        self._create()
        self._stage_and_publish()
        self._unlock()
        self._memory("node plugin RSS after the calls above")

    def bare(self, function: str, **arguments: Any) -> Any:
        """A function of `bench.bare` in the node."""
        return self.node.call(f"bench.bare:{function}", **arguments)

    def note(self, what: str, ours: float, baseline: float | None, target: float | None, unit: str = "s") -> None:
        """Print and keep a line."""
        line = Line(what=what, ours=ours, baseline=baseline, unit=unit, target=target)
        self.lines.append(line)
        print(line, flush=True)

    def _start(self) -> None:
        starts = []
        for _ in range(3):
            started = self.bare(
                "seconds_until_serving", argv=self.driver.argv(), log=self.driver.log, socket=self.driver.socket
            )
            starts.append(started)
            self.driver.adopt(int(started["pid"]))
            self.driver.stop()
        self.driver.start()
        bare = statistics.median(self.bare("python_start", modules="grpc,google.protobuf.message") for _ in range(3))
        answering = statistics.median(started["answering"] for started in starts)
        here, in_the_lab = self._start_on_the_machine(), "in the lab's node, where each system call is slow"
        self.note("node plugin: start until it answers, on the machine itself", here, None, 0.5)
        self.note(f"  the same {in_the_lab}", answering, None, None)
        self.note("  against Python importing grpc and protobuf there", answering, bare, None)
        self.note(
            "  until LVM was looked at and it is ready there",
            statistics.median(s["ready"] for s in starts),
            None,
            None,
        )
        self._memory("node plugin RSS after its start")

    @staticmethod
    def _start_on_the_machine() -> float:
        """Answering calls needs no LVM, so it can be timed without the lab; `true` stands where LVM would look at disks."""
        with tempfile.TemporaryDirectory() as folder:
            argv = [
                sys.executable, "-m", "csi", "node", "--endpoint", f"unix://{folder}/csi.sock", "--node-id", "bench",
                "--state-dir", folder, "--kata-registry", folder, "--metrics-address", "", "--lvm-prefix", "true",
            ]  # fmt: skip
            return statistics.median(
                bare.seconds_until_answering(argv, f"{folder}/log", f"{folder}/csi.sock") for _ in range(5)
            )

    def _memory(self, what: str) -> None:
        found = self.bare("memory", pid=self.driver.pid)
        self.note(what, found["rss"] / 1024, None, 50, "MiB")

    def _create(self) -> None:
        ours, bare = self._alternate(
            lambda n: self.driver.create(f"pvc-create-{n}", _SIZE, _CAPABILITY).seconds,
            lambda n: self.bare("lvcreate", name=f"bare-create-{n}", size_bytes=_SIZE),
        )
        self.note("CreateVolume / bare lvcreate", ours, bare, 1.15)
        again, report = self._alternate(
            lambda n: self.driver.create(f"pvc-create-{n}", _SIZE, _CAPABILITY).seconds,
            lambda _: self.bare("command", argv=["lvs", "-o", "lv_name,lv_tags"]),
        )
        self.note("CreateVolume repeated / bare lvs", again, report, None)
        self.bare("undo", commands=[["lvremove", "--yes", "vg0"]])

    def _stage_and_publish(self) -> None:
        for number in range(_ROUNDS):
            self.driver.create(f"pvc-stage-{number}", _SIZE, _CAPABILITY).ok()
            for kind in ("bare", "all"):
                self.bare("lvcreate", name=f"{kind}-{number}", size_bytes=_SIZE)
            self.bare("undo", commands=[["lvchange", "--yes", "--activate", "y", f"vg0/bare-{number}"]])
        ours, bare = self._alternate(
            lambda n: self._show(f"pvc-stage-{n}"),
            lambda n: self.bare("mkfs_and_mount", name=f"bare-{n}", folder=f"/run/bench/bare-{n}"),
        )
        every = statistics.median(
            self.bare("all_commands_of_a_first_stage", name=f"all-{n}", folder=f"/run/bench/all-{n}")
            for n in range(_ROUNDS)
        )
        self.note("first Stage + Publish / bare mkfs + mount", ours, bare, 1.15)
        self.note("first Stage + Publish / activate + mkfs + tag + mount + bind", ours, every, None)
        for number in range(_ROUNDS):
            self._hide(f"pvc-stage-{number}")
            folder = f"/run/bench/all-{number}"
            off = ["lvchange", "--yes", "--activate", "n", f"vg0/all-{number}"]
            self.bare("undo", commands=[["umount", folder + "-bound"], ["umount", folder], off])
        ours, bare = self._alternate(
            lambda n: self._show(f"pvc-stage-{n}"),
            lambda n: self.bare("mount_again", name=f"all-{n}", folder=f"/run/bench/all-{n}"),
        )
        self.note("later Stage + Publish / activate + fsck + mount + bind", ours, bare, None)

    def _unlock(self) -> None:
        broker = Broker(self.node, port=8460)
        measured = init_data(broker, host="127.0.0.1")
        broker.allow(measured)
        broker.start()
        self.node.write(_POLICY, measured.encode())
        volume = self.driver.create("pvc-unlock", _SIZE, _CAPABILITY, sealed="xts").ok()["volume"]
        self.driver.stage(volume, _CAPABILITY).ok()
        self.bare("lvcreate", name="bare-unlock", size_bytes=_SIZE)
        self.bare("undo", commands=[["lvchange", "--yes", "--activate", "y", "vg0/bare-unlock"]])
        self.bare("luks_volume", name="bare-unlock", key_file="/run/bench/key")
        guest = [sys.executable, "-m", "csi", "guest"]
        opened = [*guest, "open", "--policy", _POLICY, "--volume", "pvc-unlock", "--device", "/dev/vg0/pvc-unlock"]
        closed = [*guest, "close", "--volume", "pvc-unlock"]
        self.bare("undo", commands=[opened, closed])

        def ours(_: int) -> float:
            seconds = float(self.bare("command", argv=opened))
            self.bare("undo", commands=[closed])
            return seconds

        def bare(_: int) -> float:
            seconds = self.bare(
                "luks_open_and_mount", name="bare-unlock", key_file="/run/bench/key", folder="/run/bench/luks"
            )
            self.bare("undo", commands=[["umount", "/run/bench/luks"], ["cryptsetup", "close", "bench"]])
            return float(seconds)

        mine, base = self._alternate(ours, bare)
        python = statistics.median(
            self.bare("python_start", modules="csi.guest.unlock,csi.guest.attest.kbs_client,csi.guest.devices")
            for _ in range(3)
        )
        self.note("unlock (attest, verify, open, commit, mount) / bare cryptsetup open + mount", mine, base, 1.5)
        self.note("  of which: Python's start and imports", python, None, None)
        broker.stop()

    def _show(self, name: str) -> float:
        volume = {"volume_id": name}
        staged = self.driver.stage(volume, _CAPABILITY)
        staged.ok()
        published = self.driver.publish(volume, _CAPABILITY)
        published.ok()
        return staged.seconds + published.seconds

    def _hide(self, name: str) -> None:
        self.driver.unpublish(name).ok()
        self.driver.unstage(name).ok()

    @staticmethod
    def _alternate(ours: Callable[[int], float], bare: Callable[[int], float]) -> tuple[float, float]:
        pairs = [(ours(number), bare(number)) for number in range(_ROUNDS)]
        return statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs)


def main() -> int:
    """Boot, measure, print, write; a missed target is printed and is not a failure."""
    argparse.ArgumentParser(prog="python -m bench", description=__doc__).parse_args()
    try:
        kind = pick()
    except LabUnavailable as reason:
        print(f"the lab can't run here: {reason}", file=sys.stderr)
        return 2
    with kind() as node:
        node.run(["mkdir", "-p", "/run/bench"])
        bench = Bench(node)
        bench.run()
        bench.driver.stop()
    _REPORT.parent.mkdir(exist_ok=True)
    _REPORT.write_text(json.dumps([asdict(line) | {"value": line.value} for line in bench.lines], indent=1))
    print(f"medians of {_ROUNDS} alternating rounds on a {kind.kind} node; {_REPORT.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
