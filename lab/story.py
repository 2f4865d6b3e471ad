"""The main job told step by step, with its proofs: what `make demo` shows and what the suite demands.

Each step is timed and says what it found; a proof that fails ends the story with an error. Nothing is acted: the volume is
a real LV, the guest a real virtual machine, the records, refusals and wiped extents are read back from where they lie.
"""

import json
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab import kata
from lab.driver import MIB, REGISTRY, Driver, lvs, mount_capability
from lab.kata import Rules
from lab.node import Node
from lab.sealed import Broker, Guest, init_data

VOLUME = "pvc-demo"
_SIZE = 64 * MIB
_HEADER_BYTE = 0x2A0
_NOISE_BITS = 7.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step as it happened: seconds since the start, and how it ended."""

    title: str
    kind: str
    started: float
    ended: float
    found: str
    passed: bool


@dataclass(kw_only=True)
class Story:
    """Runs the story on a booted node. `say` gets each finished event."""

    node: Node
    say: Callable[[Event], None]
    events: list[Event] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @contextmanager
    def step(self, title: str, kind: str = "step") -> Iterator[list[str]]:
        """A timed step; what is put into the list is what it found."""
        started, found = time.monotonic() - self.began, list[str]()
        passed = False
        try:
            yield found
            passed = True
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
            raise
        finally:
            event = Event(
                title=title,
                kind=kind,
                started=started,
                ended=time.monotonic() - self.began,
                found="; ".join(found),
                passed=passed,
            )
            self.events.append(event)
            self.say(event)

    def tell(self) -> None:
        """The whole story."""
        self._prepare()
        volume, target = self._provision()
        marker = f"the tenant's secret {secrets.token_hex(16)}".encode()
        first = self._first_guest(volume, target, marker)
        self._prove_noise(marker)
        self._prove_tombstone(target)
        with self.step("the first guest is killed, as in a crash"):
            first.kill()
        self._other_guest(target)
        guest, device = self._second_guest(target, marker)
        self._prove_hostile_disk(guest, device)
        self._delete(target)

    def _prepare(self) -> None:
        with self.step("volume group on the node's disks") as found:
            self.node.run(["vgcreate", "-q", "vg0", *self.node.disks])
            found.append(self.node.run(["vgs", "--noheadings", "-o", "vg_name,pv_count,vg_size"]).text.strip())
        with self.step("the tenant's broker is set up and serves") as found:
            self.broker = Broker(self.node)
            self.measured = init_data(self.broker)
            # So long a lease that nothing but the operator's word ends it while the story is told.
            self.broker.allow(self.measured, lease_seconds=3600)
            self.broker.start()
            found.append("TLS, policy with one allowed measurement")
        with self.step("the node plugin starts") as found:
            self.driver = Driver(self.node, {"pools": [{"name": "main", "vgs": ["vg0"]}]})
            self.driver.start()
            found.append("it has no key, and no library to use one")

    def _provision(self) -> tuple[dict[str, Any], str]:
        capability = mount_capability("ext4", "SINGLE_NODE_SINGLE_WRITER")
        with self.step("CreateVolume: a claim of 64 MiB with sealed: xts") as found:
            volume = self.driver.create(VOLUME, _SIZE, capability, sealed="xts").ok()["volume"]
            shown = self.node.run(["lvs", "--noheadings", "--units", "m", "-o", "lv_name,lv_size,segtype", "vg0"]).text
            found.append(f"LV {' '.join(shown.split())}")
        with self.step("NodeStageVolume: prepared and activated, never probed again") as found:
            self.driver.stage(volume, capability).ok()
            found.append(self.node.run(["lvs", "--noheadings", "-o", "lv_tags", f"vg0/{VOLUME}"]).text.strip()[:160])
        with self.step("NodePublishVolume: Kata's record, and the tombstone under it") as found:
            self.driver.publish(volume, capability).ok()
            target = self.driver.target_path(VOLUME)
            record = self.node.read(f"{REGISTRY}/{kata.encoded(target)}/mountInfo.json").decode()
            found.append(record)
        return volume, target

    def _boot(self, title: str, measured: str) -> Guest:
        with self.step(title) as found:
            guest = Guest(self.node, measured).boot()
            found.append(f"agent answers after {guest.boot_seconds:.1f} s")
        return guest

    def _first_guest(self, volume: dict[str, Any], target: str, marker: bytes) -> Guest:
        guest = self._boot("a confidential guest boots (QEMU)", self.measured)
        with self.step("Kata reads the record and plugs the LV") as found:
            handed = guest.hand_over(target, Rules.RS)
            found.append(
                f"{handed['storage']['driver']} {handed['storage']['source']} is {handed['device']} in the guest"
            )
        with self.step("attest, get the key, format once, mount") as found:
            done = guest.open(volume["volume_id"], handed["device"])
            found.append(" | ".join(done.stderr.decode().splitlines()))
            assert json.loads(done.stdout)["formatted_now"] is True
        with self.step("the workload writes a file") as found:
            guest.write("/data/volume/file", marker)
            *_, size, _, free, _, _ = guest.run(["/usr/bin/df", "-h", "/data/volume"]).text.split()
            found.append(f"/data/volume has {size}, {free} of it free")
        return guest

    def _prove_noise(self, marker: bytes) -> None:
        with self.step("the raw LV shows neither the marker nor anything but noise", "proof") as found:
            raw = self.node.call("lab.story:look_at_raw", device=f"/dev/vg0/{VOLUME}", marker=marker.decode())
            assert not raw["marker"], "the marker lies in clear on the node's disk"
            assert raw["written_blocks"] > 100, "hardly anything was written"
            assert raw["least_bits"] > _NOISE_BITS, f"a part of the payload has only {raw['least_bits']} bits a byte"
            found.append(
                f"{raw['written_blocks']} written blocks of 4 KiB, every MiB of them at least "
                f"{raw['least_bits']:.4f} bits a byte; marker absent"
            )

    def _prove_tombstone(self, target: str) -> None:
        with self.step("a runtime that ignores the record can't write to the host", "proof") as found:
            guest = kata.interpret({}, Rules.GO_WITHOUT_BLOCK)
            assert isinstance(guest, kata.PlainDirectory)
            wrote = self.node.run(["sh", "-c", f"echo data > {target}/file"], check=False)
            assert wrote.rc != 0
            assert b"Read-only file system" in wrote.stderr
            found.append("EROFS: " + wrote.stderr.decode().strip().rpartition("/")[2])

    def _other_guest(self, target: str) -> None:
        guest = self._boot("a guest with another measurement boots", init_data(self.broker, note="another"))
        with self.step("the broker refuses the other measurement", "proof") as found:
            device = guest.hand_over(target, Rules.RS)["device"]
            self._refused(guest, device, 6, found)
            guest.kill()

    def _second_guest(self, target: str, marker: bytes) -> tuple[Guest, str]:
        guest = self._boot("a second guest with the right measurement boots", self.measured)
        with self.step("it does not get in beside a guest that may still write", "proof") as found:
            device = guest.hand_over(target, Rules.GO)["device"]
            self._refused(guest, device, 11, found)
        with self.step("the tenant's operator vouches that the first guest is dead"):
            self.broker.end_lease(VOLUME)
        with self.step("it opens the volume and reads the file back", "proof") as found:
            opened = json.loads(guest.open(VOLUME, device).stdout)
            assert opened["formatted_now"] is False
            assert guest.read("/data/volume/file") == marker
            found.append(f"same content, generation {opened['generation']}, freshness {opened['freshness']}")
        with self.step("it closes the volume in order"):
            guest.sealed_local("close", "--volume", VOLUME)
        return guest, device

    def _prove_hostile_disk(self, guest: Guest, device: str) -> None:
        lv = f"/dev/vg0/{VOLUME}"
        with self.step("one changed bit in the header is refused", "proof") as found:
            good = self._node_read(lv, 0, 32 * MIB)
            for copy in (0, 16 * MIB):
                changed = bytes([good[copy + _HEADER_BYTE] ^ 1])
                self.node.write(lv, changed, offset=copy + _HEADER_BYTE)
            self._refused(guest, device, 3, found)
            for copy in (0, 16 * MIB):
                self.node.write(lv, good[copy + _HEADER_BYTE : copy + _HEADER_BYTE + 1], offset=copy + _HEADER_BYTE)
        with self.step("a blanked device is refused, and not formatted", "proof") as found:
            self.node.call("lab.story:blank", device=lv)
            self._refused(guest, device, 4, found)
            raw = self.node.call("lab.story:look_at_raw", device=lv, marker="x")
            assert raw["written_blocks"] == 0, "something was written to the blanked device"
            found.append("still blank afterwards")
        guest.kill()

    def _refused(self, guest: Guest, device: str, status: int, found: list[str]) -> None:
        guest.call("drop_caches")
        done = guest.open(VOLUME, device, check=False)
        said = done.stderr.decode().strip().splitlines()[-1]
        assert done.rc == status, f"status {done.rc} instead of {status}: {done.stderr.decode()}"
        assert guest.run(["/usr/sbin/dmsetup", "ls"]).text.strip() == "No devices found"
        found.append(f"status {status}: {said.removeprefix('sealed-local guest: ')}")

    def _delete(self, target: str) -> None:
        lv = f"/dev/vg0/{VOLUME}"
        with self.step("unpublish, unstage, DeleteVolume") as found:
            where = extents(self.node, f"vg0/{VOLUME}")
            # The blanked volume gets content again, so that the wipe has something to do.
            self.node.call("lab.story:scribble", device=lv)
            self.driver.unpublish(VOLUME).ok()
            self.driver.unstage(VOLUME).ok()
            self.driver.delete(VOLUME).ok()
            assert VOLUME not in lvs(self.node)
            assert self.node.listing(REGISTRY) == []
            assert not self.node.exists(target)
            self.broker.shred(VOLUME)
            found.append("no LV, no record, no target; the secret is shredded")
        with self.step("the LV's former extents are wiped", "proof") as found:
            disk, offset, length = where
            after = self.node.call("lab.story:count_written", device=disk, offset=offset, length=34 * MIB)
            assert after == 0, f"{after} blocks of the former head still hold data"
            found.append(f"{disk} from {offset // MIB} MiB: the 34 MiB head reads as zeroes, of {length // MIB} MiB")
        with self.step("the node plugin and the broker stop in order") as found:
            assert self.driver.stop() == 0
            self.broker.stop()
            found.append(f"{len(self.broker.audit())} entries in the broker's audit log")

    def _node_read(self, device: str, offset: int, length: int) -> bytes:
        path = str(self.node.shared / "read.bin")
        argv = [
            "dd",
            f"if={device}",
            f"of={path}",
            "bs=1M",
            f"skip={offset // MIB}",
            f"count={length // MIB}",
            "iflag=direct",
        ]
        self.node.run(argv)
        return (self.node.shared / "read.bin").read_bytes()


def extents(node: Node, lv: str) -> tuple[str, int, int]:
    """The disk, offset and length in bytes of an LV with one segment."""
    argv = ["lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "seg_pe_ranges,seg_size,vg_extent_size", lv]
    ranges, length, extent = node.run(argv).text.split()
    disk, _, numbers = ranges.partition(":")
    start = node.run(["pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start", disk]).text
    return disk, int(start) + int(numbers.split("-")[0]) * int(extent), int(length)


def _blocks(device: str, offset: int, length: int | None) -> Iterator[bytes]:
    """Blocks of a MiB, read past every cache."""
    import mmap
    import os

    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END) if length is None else offset + length
        with mmap.mmap(-1, MIB) as buffer:
            while offset < end:
                count = os.preadv(descriptor, [memoryview(buffer)[: min(MIB, end - offset)]], offset)
                yield buffer[:count]
                offset += count
    finally:
        os.close(descriptor)


def look_at_raw(device: str, marker: str) -> dict[str, Any]:
    """Inside the node: whether the marker lies anywhere, and how random each MiB of written payload is."""
    seen, written, least = False, 0, 8.0
    for number, block in enumerate(_blocks(device, 0, None)):
        seen = seen or marker.encode() in block
        blocks = [part for at in range(0, len(block), 4096) if (part := block[at : at + 4096]).strip(b"\0")]
        written += len(blocks)
        # Only the payload is ciphertext; below lie header and records. mke2fs writes a backup of its superblock as 1 KiB:
        # what was never written of that block is decrypted, and encrypted again to the zeroes that it was.
        if number >= 34 and len(blocks) >= 64:
            sectors = (part[at : at + 512] for part in blocks for at in range(0, 4096, 512))
            least = min(least, _bits(b"".join(sector for sector in sectors if sector.strip(b"\0"))))
    return {"marker": seen, "written_blocks": written, "least_bits": least}


def count_written(device: str, offset: int, length: int) -> int:
    """Inside the node: how many blocks of 4 KiB in a range hold anything but zeroes."""
    return sum(
        1
        for block in _blocks(device, offset, length)
        for at in range(0, len(block), 4096)
        if block[at : at + 4096].strip(b"\0")
    )


def blank(device: str) -> None:
    """Inside the node: what a hostile host does to make a volume look new."""
    from csi.core import disks

    disks.zero(device, 0, disks.size(device))


def scribble(device: str) -> None:
    """Inside the node: fill the first 36 MiB with noise."""
    import os

    descriptor = os.open(device, os.O_WRONLY)
    try:
        for number in range(36):
            os.pwrite(descriptor, os.urandom(MIB), number * MIB)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bits(data: bytes) -> float:
    total = len(data)
    return -sum(count / total * math.log2(count / total) for count in Counter(data).values())
