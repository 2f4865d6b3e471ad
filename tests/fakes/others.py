"""What else happens on a node beside the driver: an administrator, a guest, a monitoring program, LVM in trouble.

Each begins on the toy node of `tests.fakes.node`, at any moment, and ends. While it lasts a call may be refused; it must
not lose data, and nothing of the others may be touched. When it is over, everything must go on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from csi.node.lvm.model import LogicalVolume
from tests.fakes.node import EXTENT, Node, Trouble

_ELSEWHERE = "/mnt/looked-at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """Something that begins and ends. `between_calls` is for what the driver could only see at its next look: LVM has
    no command that removes a volume only if it has no snapshot.
    """

    begin: Callable[[Node, str], None]
    end: Callable[[Node, str], None]
    between_calls: bool = False


def _nothing(_: Node, __: str) -> None:
    """It needs no end."""


def _lv(vg: str, name: str, origin: str = "") -> LogicalVolume:
    tags = frozenset({"of=somebody-else"})
    return LogicalVolume(name=name, vg=vg, size_bytes=EXTENT, tags=tags, partial=False, origin=origin)


def _make(vg: str, name: str) -> Callable[[Node, str], None]:
    def begin(node: Node, _: str) -> None:
        node.foreign[vg, name] = _lv(vg, name)

    return begin


def _take_away(vg: str, name: str) -> Callable[[Node, str], None]:
    def end(node: Node, _: str) -> None:
        node.foreign.pop((vg, name), None)

    return end


def _take_snapshot(node: Node, volume: str) -> None:
    if volume in node.lvs:
        node.foreign["vg0", "before-update"] = _lv("vg0", "before-update", origin=volume)


def _same_name_elsewhere(node: Node, volume: str) -> None:
    node.foreign["vg1", volume] = _lv("vg1", volume)


def _no_more_elsewhere(node: Node, volume: str) -> None:
    node.foreign.pop(("vg1", volume), None)


def _tag(node: Node, volume: str) -> None:
    if volume in node.lvs:
        lv = node.lvs[volume]
        node.lvs[volume] = replace(lv, tags=lv.tags | {"backup=nightly"})


def _mount(node: Node, volume: str) -> None:
    if volume in node.devices and node.content[volume].startswith(("empty", "what")):
        node.mount(_ELSEWHERE, node.devices[volume], "ext4", f"/dev/vg0/{volume}", read_only=True)


def _unmount(node: Node, _: str) -> None:
    node.mounts[:] = [mount for mount in node.mounts if mount.target != _ELSEWHERE]


def _open(node: Node, volume: str) -> None:
    if volume in node.devices:
        node.opened[volume] = 1


def _close(node: Node, volume: str) -> None:
    node.opened.pop(volume, None)


def _attach_loop(node: Node, volume: str) -> None:
    if volume in node.devices:
        node.loops[volume] = 1


def _detach_loop(node: Node, volume: str) -> None:
    node.loops.pop(volume, None)


def _trouble(kind: Trouble) -> Callable[[Node, str], None]:
    def begin(node: Node, _: str) -> None:
        node.trouble = kind

    return begin


def _no_trouble(node: Node, _: str) -> None:
    node.trouble = None


OTHERS: dict[str, Other] = {
    "an administrator makes an LV": Other(begin=_make("vg0", "scratch"), end=_take_away("vg0", "scratch")),
    "another group appears": Other(begin=_make("vg1", "scratch"), end=_take_away("vg1", "scratch")),
    "another group has an LV of that name": Other(begin=_same_name_elsewhere, end=_no_more_elsewhere),
    "an administrator tags the volume": Other(begin=_tag, end=_nothing),
    "an administrator takes a snapshot": Other(
        begin=_take_snapshot, end=_take_away("vg0", "before-update"), between_calls=True
    ),
    "a monitoring program mounts the volume": Other(begin=_mount, end=_unmount),
    "a guest holds the volume": Other(begin=_open, end=_close, between_calls=True),
    "a loop device lies on the volume": Other(begin=_attach_loop, end=_detach_loop, between_calls=True),
    **{f"LVM: {kind.value}": Other(begin=_trouble(kind), end=_no_trouble) for kind in Trouble},
}
