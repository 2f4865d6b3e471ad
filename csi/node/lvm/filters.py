"""Which devices LVM may look at: the patterns of its `global_filter`, and the same decision for our own look at disks.

LVM tries every name of a device, and for each name the patterns in their order: a device is taken as soon as one of its
names is accepted, left out when one is rejected and none accepted, and taken when no pattern fits. udev gives every disk
names such as /dev/block/43:0, so nothing may accept all names at the end.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_PATTERN: Final = re.compile(r"([ar])([|/@!#])(.+)\2")
_SPECIAL: Final = re.compile(r"([.\[\](){}*+?^$\\])")
_LOOP_DEVICE: Final = re.compile(r"/dev/loop[0-9]+(p[0-9]+)?")
# Network and replicated devices can freeze a scan for ever when their peer is gone.
_NEVER: Final = ("r|^/dev/drbd|", "r|^/dev/nbd|", "r|^/dev/rbd|", "r|^/dev/zram|")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFilter:
    """What the configuration says of the devices of this node."""

    loop_devices: bool = False
    """Whether all loop devices are disks of this node."""
    disks: tuple[str, ...] = ()
    """Devices that the configuration names by a path."""
    only_disks: bool = False
    """Whether no group can lie on another device than these."""
    rejected: tuple[str, ...] = ()
    """The operator's own patterns, all of which reject."""

    def patterns(self, resolved: Iterable[str] = (), without: Iterable[str] = ()) -> list[str]:
        """LVM's patterns. `resolved` are where the paths of `disks` lead; `without` are devices to leave out for now."""
        left_out = {*without}
        named = [path for path in dict.fromkeys((*self.disks, *resolved)) if path not in left_out]
        found = [*_NEVER, *(f"r|^{_literal(path)}$|" for path in sorted(left_out)), *self.rejected]
        if self.only_disks:
            return [*found, *(f"a|^{_literal(path)}$|" for path in named), "r|.*|"]
        if not self.loop_devices:
            # kubelet attaches a loop device to every raw block volume, and what lies on it the tenant has written.
            loops = [path for path in named if _LOOP_DEVICE.fullmatch(path)]
            found += [*(f"a|^{path}$|" for path in loops), "r|^/dev/loop|"]
        return found


def takes(patterns: Iterable[str], names: Iterable[str]) -> bool:
    """Whether LVM takes a device of these names."""
    return _takes(tuple(patterns), tuple(names))


@functools.lru_cache(maxsize=4096)
def _takes(patterns: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Remembered: every look asks it for every device of the node."""
    rejected = False
    for name in names:
        verdict = _verdict(patterns, name)
        if verdict == "a":
            return True
        rejected = rejected or verdict == "r"
    return not rejected


def is_rejecting(pattern: str) -> bool:
    """Whether this is a pattern that LVM reads, and one that rejects. Raises what `patterns.UNUSABLE` lists."""
    parts = _PATTERN.fullmatch(pattern)
    if parts is None:
        return False
    re.compile(parts[3])
    return parts[1] == "r"


def _verdict(patterns: tuple[str, ...], name: str) -> str:
    for pattern in patterns:
        parts = _PATTERN.fullmatch(pattern)
        if parts is not None and re.search(parts[3], name):
            return parts[1]
    return ""


def _literal(path: str) -> str:
    return _SPECIAL.sub(r"\\\1", path)
