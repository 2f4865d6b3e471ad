"""`make bench`: the driver against the bare tools, in one lab run, as ratios, and the broker by itself.

Writes build/bench.json, too.

Rounds alternate between the two sides, so that a machine that slows down slows both. Numbers are medians. In User-mode
Linux starting a process is slow (a fifth to half a second for LVM), so ratios there count processes more than work.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench import bare, exchanges
from bench.life import Life
from bench.lines import PEER_MEMORY_MIB, Compared, Line
from lab import crowd
from lab.driver import MIB, Driver, mount_capability
from lab.node import REPOSITORY, LabUnavailable, Node, pick
from lab.sealed import Broker, init_data

_ROUNDS = 7
_DISK = 16 * 1024 * MIB
_SETTLED_SECONDS = 2.0
_SIZE = 64 * MIB
_SMALL = 8 * MIB
_AROUND, _CROWD = 50, 750
_AT_ONCE = 128
_CALLS = 30
_LOOK_MS = 2
_AS_IN_THE_IMAGE = ("-OO", "-X", "no_debug_ranges")
_AS_IN_THE_CHART = "info"
_CAPABILITY = mount_capability("ext4")
_REPORT = REPOSITORY / "build" / "bench.json"
_POLICY = "/run/bench/initdata.toml"
_SERVED_POLICY = "/run/bench/served.toml"
_CDH = "/run/bench/cdh.sock"
_PLACE = "/data/volume"


class Bench:
    """All measurements on one booted node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        pools = {"pools": [{"name": "main", "vgs": ["vg0"]}]}
        self.driver = Driver(node, pools, options=_AS_IN_THE_IMAGE, log_level=_AS_IN_THE_CHART)
        self.lines: list[Line | Compared] = []

    def run(self) -> None:
        """Everything, one line after the other."""
        self.node.run(["vgcreate", "-q", "vg0", *self.node.disks])
        self._start()
        self._surround(1, _AROUND)
        Life(self.driver, self.keep).run()
        self._unlock()
        self._surround(_AROUND + 1, _CROWD)
        self._looks()
        self.driver.many("GetCapacity", [{}] * _AT_ONCE)
        self._memory(f"node plugin RSS after the calls above and {_AT_ONCE} at once", PEER_MEMORY_MIB)

    def bare(self, function: str, **arguments: Any) -> Any:
        """A function of `bench.bare` in the node."""
        return self.node.call(f"bench.bare:{function}", **arguments)

    def note(self, what: str, ours: float, baseline: float | None, target: float | None, unit: str = "s") -> None:
        """Print and keep a measurement."""
        self.keep(Line(what=what, ours=ours, baseline=baseline, unit=unit, target=target))

    def keep(self, line: Line | Compared) -> None:
        """Print and keep a line."""
        self.lines.append(line)
        print(line, flush=True)

    def _surround(self, first: int, last: int) -> None:
        """Fill the group up to so many volumes that nobody uses."""
        model = f"pvc-around-{first}"
        self.driver.create(model, _SMALL, _CAPABILITY).ok()
        crowd.multiply(self.node, "vg0", model, [f"pvc-around-{n}" for n in range(first + 1, last + 1)])

    def _looks(self) -> None:
        """GetCapacity and stats while nothing changes: what they take beyond a call that does nothing, and no process."""
        volume = {"volume_id": "pvc-looked-at"}
        self.driver.create("pvc-looked-at", _SIZE, _CAPABILITY).ok()
        self.driver.stage(volume, _CAPABILITY).ok()
        self.driver.publish(volume, _CAPABILITY).ok()
        path = {"volume_path": self.driver.target_path("pvc-looked-at")}
        nothing = self._call("Probe")
        self._call("GetCapacity")
        self.node.call("lab.exits:start")
        capacity, stats = self._call("GetCapacity"), self._call("NodeGetVolumeStats", **volume, **path)
        started = len(self.node.call("lab.exits:children", parent=self.driver.pid))
        self.note(f"an empty call (Probe), {_CROWD} volumes", nothing * 1000, None, None, "ms")
        self.note("  GetCapacity beyond it", (capacity - nothing) * 1000, None, _LOOK_MS, "ms")
        self.note("  NodeGetVolumeStats beyond it", (stats - nothing) * 1000, None, _LOOK_MS, "ms")
        self.note(f"  processes that {_CALLS} of each started", started, None, 0, "")
        self.driver.unpublish("pvc-looked-at").ok()
        self.driver.unstage("pvc-looked-at").ok()

    def _call(self, method: str, **request: Any) -> float:
        return float(self.bare("calls", socket=self.driver.socket, method=method, request=request, count=_CALLS))

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
                sys.executable, *_AS_IN_THE_IMAGE, "-m", "csi", "node",
                "--endpoint", f"unix://{folder}/csi.sock", "--node-id", "bench",
                "--state-dir", folder, "--kata-registry", folder, "--metrics-address", "", "--lvm-prefix", "true",
            ]  # fmt: skip
            return statistics.median(
                bare.seconds_until_answering(argv, f"{folder}/log", f"{folder}/csi.sock") for _ in range(5)
            )

    def _memory(self, what: str, peers: Mapping[str, int] | None = None) -> None:
        # What the process keeps is meant, not what it uses for a moment.
        time.sleep(_SETTLED_SECONDS)
        found = self.bare("memory", pid=self.driver.pid)
        also = "".join(f", {name} {mib}" for name, mib in (peers or {}).items())
        self.note(f"{what} ({found['threads']} threads{also})", found["rss"] / 1024, None, 50, "MiB")

    def _unlock(self) -> None:
        broker = Broker(self.node, port=8460)
        measured = init_data(broker, host="127.0.0.1")
        served = measured.replace('id_pattern = "pvc-[a-z0-9-]+"', 'id = "pvc-unlock"')
        broker.allow(measured, served)
        broker.start()
        self.node.write(_POLICY, measured.encode())
        self.node.write(_SERVED_POLICY, served.encode())
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
        self._unlock_served(bare)
        broker.stop()

    def _unlock_served(self, bare: Callable[[int], float]) -> None:
        log = f"{self.node.shared}/serve.log"
        serve = ["serve", "--policy", _SERVED_POLICY, "--socket", _CDH]
        process = self.node.spawn([sys.executable, "-m", "csi", "guest", *serve], log)

        def ours(_: int) -> float:
            seconds = self.node.call("bench.served:mount", socket=_CDH, device="/dev/vg0/pvc-unlock", place=_PLACE)
            self.node.call("bench.served:end", place=_PLACE)
            return float(seconds)

        self.node.call("bench.served:wait", socket=_CDH)
        ours(0)
        mine, base = self._alternate(ours, bare)
        self.note("unlock by a resident serve / bare cryptsetup open + mount", mine, base, 2.5)
        for phase, seconds in self.node.call("bench.served:phases", log=log).items():
            self.note(f"  of which: {phase}", seconds, None, None)
        self.node.kill(process, signal.SIGTERM)
        self.node.wait(process)

    @staticmethod
    def _alternate(ours: Callable[[int], float], bare: Callable[[int], float]) -> tuple[float, float]:
        pairs = [(ours(number), bare(number)) for number in range(_ROUNDS)]
        return statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs)


def _compile_as_in_the_image() -> None:
    """The image holds its byte code; what is compiled at each start takes memory that stays."""
    writing = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    packages = [sysconfig.get_path("purelib"), "csi"]
    all_of_it = [sys.executable, *_AS_IN_THE_IMAGE, "-m", "compileall", "-q", "-j", "0", *packages]
    subprocess.run(all_of_it, cwd=REPOSITORY, env=writing, check=False, capture_output=True)
    for module in ("csi.node.main", "runpy", "csi.__main__"):
        argv = [sys.executable, *_AS_IN_THE_IMAGE, "-c", f"import {module}"]
        subprocess.run(argv, cwd=REPOSITORY, env=writing, check=True)


def main() -> int:
    """Boot, measure, print, write; a missed target is printed and is not a failure."""
    argparse.ArgumentParser(prog="python -m bench", description=__doc__).parse_args()
    try:
        kind = pick()
    except LabUnavailable as reason:
        print(f"the lab can't run here: {reason}", file=sys.stderr)
        return 2
    _compile_as_in_the_image()
    # Flushes are part of what a change costs.
    with kind((_DISK,), flushes=True) as node:
        node.run(["mkdir", "-p", "/run/bench"])
        bench = Bench(node)
        exchanges.run(bench.keep)
        bench.run()
        bench.driver.stop()
    _REPORT.parent.mkdir(exist_ok=True)
    _REPORT.write_text(json.dumps([line.as_json() for line in bench.lines], indent=1))
    print(f"medians of {_ROUNDS} alternating rounds on a {kind.kind} node; {_REPORT.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
