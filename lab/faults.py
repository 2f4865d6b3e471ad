"""A disk that dies on command: read errors, write errors, no answer at all, a bad sector, gone and back again.

It is a device-mapper device over a good disk. Each fault is another table, put in place while volumes on it are in use, so
LVM, filesystems and the driver above see what a dying disk shows. Nothing of what was written before is lost by a fault.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from lab.node import Node

_SECTOR_BYTES: Final = 512
_MIB_SECTORS: Final = 2048
_BELOW: Final = _MIB_SECTORS
"""Where this disk begins on the good one. With an offset of none LVM would find its label on both."""
_FOREVER_MS: Final = 3_600_000
_NO_UDEV = {"DM_DISABLE_UDEV": "1"}
"""A command that waits for udev would hang with a disk that does not answer yet or again: udev reads it."""


class Part(Enum):
    """What of the disk a fault takes."""

    DATA = "data"
    """All but the first and the last MiB: LVM reads its label and metadata in the one and looks for RAID in the other."""
    WHOLE = "whole"


@dataclass(kw_only=True)
class FaultyDisk:
    """`/dev/mapper/<name>` over `below`. Made healthy; a fault lasts until `heal`."""

    node: Node
    name: str
    below: str
    _sectors: int = field(init=False, default=0)
    _gone: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.node.run(["modprobe", "-a", "dm-delay", "dm-flakey"])
        self._sectors = int(self.node.run(["blockdev", "--getsz", self.below]).text) - _BELOW
        self._create(self._broken_name, f"0 {self._sectors} error")
        self._create(self.name, self._good(0, self._sectors))

    @property
    def path(self) -> str:
        """What a group is made on, and a pool's `devices` name."""
        return f"/dev/mapper/{self.name}"

    def heal(self) -> None:
        """All that waited is carried out, and the disk is as good as before."""
        self._put(self._good(0, self._sectors))

    def fail_reads(self, part: Part = Part.DATA) -> None:
        """Reads end in an error, writes get through: dm-delay sends the two to different devices, without any delay."""
        broken = f"/dev/mapper/{self._broken_name}"
        self._fault(part, lambda start: f"delay {broken} {start} 0 {self.below} {start + _BELOW} 0")

    def fail_writes(self, part: Part = Part.DATA) -> None:
        """Writes end in an error, reads get through."""
        self._fault(part, lambda start: f"flakey {self.below} {start + _BELOW} 0 3600 1 error_writes")

    def freeze(self, part: Part = Part.DATA) -> None:
        """Nothing is answered, as of a network disk whose peer is gone. The kernel does not show it as suspended."""
        self._fault(part, lambda start: f"delay {self.below} {start + _BELOW} {_FOREVER_MS}")

    def forget_zeroing(self) -> None:
        """No fault: a disk without a command of its own that zeroes. dm-flakey passes none on."""
        self._put(f"0 {self._sectors} flakey {self.below} {_BELOW} 3600 0\n")

    def suspend(self) -> None:
        """Nothing is answered, and the kernel says that the device is suspended."""
        self.node.run(["dmsetup", "suspend", "--nolockfs", "--noflush", self.name], env=_NO_UDEV)

    def spoil(self, offset: int, length: int = 4096) -> None:
        """A bad sector: reads and writes of this range end in an error."""
        first, count = offset // _SECTOR_BYTES, length // _SECTOR_BYTES
        end = first + count
        self._put(self._good(0, first) + f"{first} {count} error\n" + self._good(end, self._sectors - end))

    def vanish(self) -> None:
        """The disk is pulled: what is open on it gets errors, and nothing of its name is left in /dev."""
        self._gone += 1
        self._put(f"0 {self._sectors} error\n")
        self.node.run(["dmsetup", "rename", self.name, f"{self.name}-gone{self._gone}"])
        self.node.run(["rm", "-f", self.path])

    def come_back(self) -> None:
        """Plugged in again under the same name: the kernel gives it another number, and what was open stays dead."""
        self._create(self.name, self._good(0, self._sectors))

    @property
    def _broken_name(self) -> str:
        return f"{self.name}-broken"

    def _good(self, first: int, count: int) -> str:
        return f"{first} {count} linear {self.below} {first + _BELOW}\n"

    def _fault(self, part: Part, target: Callable[[int], str]) -> None:
        edge = _MIB_SECTORS if part is Part.DATA else 0
        last = self._sectors - edge
        edges = (self._good(0, edge), self._good(last, edge)) if edge else ("", "")
        self._put(f"{edges[0]}{edge} {last - edge} {target(edge)}\n{edges[1]}")

    def _put(self, table: str) -> None:
        """Another table at once. The kernel lets go of what a delay holds back before it takes the table away."""
        self.node.run(["dmsetup", "load", self.name], stdin=table.encode(), env=_NO_UDEV)
        self.node.run(["dmsetup", "resume", "--nolockfs", "--noflush", self.name], env=_NO_UDEV)
        self._link()

    def _link(self) -> None:
        """Udev takes the link of a device away whose table was changed without it, and looks no further into the disk."""
        self.node.run(["udevadm", "settle", "--timeout=10"], check=False)
        device = self.node.run(["dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", self.name]).text.strip()
        self.node.run(["ln", "-sfn", f"../{device}", self.path])

    def _create(self, name: str, table: str) -> None:
        """By udev, so that its name in /dev/mapper is the link that it is on every host."""
        self.node.run(["dmsetup", "create", name], stdin=table.encode())
