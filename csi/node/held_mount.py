"""The mount that a path lies in, and whom it shares what is mounted below it with. Format: mountinfo, proc(5)."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMount:
    """One line of mountinfo, as far as propagation goes."""

    identity: int
    """Unique among the mounts of this moment; /proc/self/fdinfo names it for an open file."""
    root: str
    target: str
    fstype: str
    shared: int | None
    """The peer group: a mount in one of its members appears in all. None: nobody else sees what is mounted here."""
    master: int | None
    """The peer group whose mounts appear here, too, but not the other way round."""


def find(mountinfo: str, identity: int) -> HeldMount:
    """The mount of that number. Raises `LookupError` when it is gone."""
    start = f"{identity} "
    line = next((line for line in mountinfo.split("\n") if line.startswith(start)), None)
    if line is None:
        raise LookupError(f"no mount has the number {identity}")
    left, _, right = line.partition(" - ")
    fields = left.split(" ")
    groups = dict(field.split(":", 1) for field in fields[6:] if ":" in field)
    return HeldMount(
        identity=identity,
        root=fields[3],
        target=fields[4],
        fstype=right.split(" ", 1)[0],
        shared=int(groups["shared"]) if "shared" in groups else None,
        master=int(groups["master"]) if "master" in groups else None,
    )


def peer_groups(mountinfo: str) -> frozenset[int]:
    """Every peer group that any of the mounts belongs to."""
    return frozenset(_groups(mountinfo))


def _groups(mountinfo: str) -> Iterator[int]:
    for line in mountinfo.split("\n"):
        for field in line.partition(" - ")[0].split(" ")[6:]:
            if field.startswith("shared:"):
                yield int(field.removeprefix("shared:"))
