"""Hundreds of volumes in a moment: one that the driver has made, written many times into the group's metadata."""

import re
import secrets
import string

from csi.node.lvm.names import name_digest
from lab.node import Node

_BACKUP = "/tmp/crowd.vg"
_ID_PARTS = (6, 4, 4, 4, 4, 4, 6)
_ID_LETTERS = string.ascii_letters + string.digits


class GroupFull(Exception):
    """LVM refuses this much metadata; the text is what it says."""


def multiply(node: Node, vg: str, model: str, names: list[str]) -> None:
    """Put volumes like `model`, which the driver has just made, behind all others of the group's only disk.

    They are what the driver itself would have made by these names. Raises `GroupFull` when their metadata finds no room.
    """
    node.run(["vgcfgbackup", "-q", "-f", _BACKUP, vg])
    text = node.read(_BACKUP).decode()
    found = re.search(rf"\t\t{re.escape(model)} {{\n.*?\n\t\t}}\n", text, re.DOTALL)
    assert found is not None, f"{vg} has no volume {model}"
    counts = [int(count) for count in re.findall(r"extent_count = (\d+)", text)]
    places = [int(place) for place in re.findall(r'"pv0", (\d+)', text)]
    free = max(place + count for place, count in zip(places, counts, strict=True))
    extents = int(re.findall(r"extent_count = (\d+)", found[0])[0])
    more = "".join(_like(found[0], model, name, free + number * extents) for number, name in enumerate(names))
    node.write(_BACKUP, (text[: found.end()] + more + text[found.end() :]).encode())
    done = node.run(["vgcfgrestore", "-q", "--yes", "-f", _BACKUP, vg], check=False)
    if done.rc != 0:
        raise GroupFull(done.stderr.decode(errors="replace"))


def _like(block: str, model: str, name: str, first_extent: int) -> str:
    ours = block.replace(f"\t\t{model} {{", f"\t\t{name} {{").replace(name_digest(model), name_digest(name))
    ours = re.sub(r'id = "[^"]+"', f'id = "{_new_id()}"', ours, count=1)
    return re.sub(r'"pv0", \d+', f'"pv0", {first_extent}', ours)


def _new_id() -> str:
    return "-".join("".join(secrets.choice(_ID_LETTERS) for _ in range(count)) for count in _ID_PARTS)
