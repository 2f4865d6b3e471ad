"""A metadata text to a volume group, exactly as LVM's own report would show it, or `NotUnderstood`.

Only what this driver itself makes is understood: linear and striped volumes on disks that are all there. A snapshot, a thin
pool, a mirror, a key or a flag that isn't listed here (another version of LVM) is for LVM to explain.
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from csi.core.size import SECTOR_BYTES
from csi.node.lvm import metadata_text
from csi.node.lvm.metadata_area import NotUnderstood
from csi.node.lvm.metadata_text import Section
from csi.node.lvm.model import AllocationPolicy, LogicalVolume, PhysicalVolume, Tags, VolumeGroup

Used = Mapping[str, list[tuple[int, int]]]
"""Runs of extents in use by the label of their disk: the first one and how many."""

Runs = tuple[tuple[str, int, int], ...]
"""Runs of extents: the label of their disk, the first one, and how many."""

_POLICY: Final = AllocationPolicy.NORMAL
"""What LVM leaves out of the text."""
_VOLUMES: Final = "logical_volumes"
_NOTHING: Final[Mapping[tuple[int, bytes], "ReadVolume"]] = MappingProxyType({})
_CONTENTS: Final = {"contents": "Text Format Volume Group", "version": 1}
_AROUND: Final = frozenset({"contents", "version", "description", "creation_host", "creation_time"})
_VG_KEYS: Final = frozenset(
    {
        "id", "seqno", "format", "status", "flags", "extent_size", "max_lv", "max_pv", "metadata_copies", "tags",
        "allocation_policy", "physical_volumes", "logical_volumes",
    }
)  # fmt: skip
_PV_KEYS: Final = frozenset(
    {
        "id", "device", "device_id", "device_id_type", "status", "flags", "dev_size", "pe_start", "pe_count", "tags",
        "ba_start", "ba_size",
    }
)  # fmt: skip
_LV_KEYS: Final = frozenset(
    {
        "id",
        "status",
        "flags",
        "tags",
        "creation_time",
        "creation_host",
        "allocation_policy",
        "read_ahead",
        "segment_count",
    }
)
_SEGMENT_KEYS: Final = frozenset(
    {"start_extent", "extent_count", "type", "stripe_count", "stripe_size", "stripes", "tags"}
)
_VG_STATUS: Final = frozenset({"RESIZEABLE", "READ", "WRITE"})
_PV_STATUS: Final = frozenset({"ALLOCATABLE"})
_LV_STATUS: Final = frozenset({"READ", "WRITE", "VISIBLE"})
_VG_FLAGS: Final = frozenset({"NOAUTOACTIVATE"})
_LV_FLAGS: Final = frozenset({"NOAUTOACTIVATE", "ACTIVATION_SKIP"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadVolume:
    """A volume as its part of the text has it, and what it takes of each disk."""

    lv: LogicalVolume
    used: Runs


Remembered = Mapping[tuple[int, bytes], ReadVolume]
"""Volumes by extent size and the digest of their text, which itself would be half of a node's memory of its volumes. Of a
group with many volumes a commit changes one.
"""


def volume_group(text: bytes, known: VolumeGroup, remembered: Remembered = _NOTHING) -> tuple[VolumeGroup, Remembered]:
    """The group that the text describes, and its volumes to be remembered until the next text.

    `known` is what LVM said of it before: its disks by name and number. Raises `NotUnderstood` when it has other disks now,
    another name or UUID, or anything that isn't plain.
    """
    frame, parts = metadata_text.cut(text, _VOLUMES)
    group = _frame(metadata_text.parse(frame), known)
    size = _number(group, "extent_size")
    if not size:
        raise NotUnderstood(f"group {known.name} has extents of no size")
    read: dict[tuple[int, bytes], ReadVolume] = {}
    count = 0
    for part in parts:
        count += 1
        digest = (size, hashlib.sha256(part.encode()).digest())
        read[digest] = remembered.get(digest) or _volume(part, known, size)
    volumes = sorted((volume.lv for volume in read.values()), key=lambda lv: lv.name)
    if len({lv.name for lv in volumes}) != count:
        raise NotUnderstood(f"group {known.name} has two volumes of one name")
    used: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for volume in read.values():
        for disk, first, count in volume.used:
            used[disk].append((first, count))
    pvs = _pvs(_section(group, "physical_volumes"), known, used)
    found = replace(
        known,
        extent_bytes=size * SECTOR_BYTES,
        extents=sum(pv.extents for pv in pvs),
        free_extents=sum(pv.free_extents for pv in pvs),
        writable="WRITE" in _words(group, "status"),
        policy=AllocationPolicy.read(_word(group, "allocation_policy")) if "allocation_policy" in group else _POLICY,
        max_lv=_number(group, "max_lv") if "max_lv" in group else 0,
        exported=False,
        partial=False,
        pvs=pvs,
        lvs=tuple(volumes),
    )
    return found, read


def _frame(whole: Section, known: VolumeGroup) -> Section:
    """The group's section, of which the volumes were cut out."""
    group = _section(whole, known.name)
    if whole.keys() - _AROUND != {known.name} or any(whole.get(key) != value for key, value in _CONTENTS.items()):
        raise NotUnderstood("the metadata text has another form than this driver knows")
    _require_plain(group, _VG_KEYS, _VG_STATUS, flags=_VG_FLAGS)
    if group.get("id") != known.uuid or group.get("format") != "lvm2" or group.get(_VOLUMES, {}):
        raise NotUnderstood(f"the metadata text belongs to another group than {known.name}")
    return group


def with_room(vg: VolumeGroup, metadata_free_bytes: int | None) -> VolumeGroup:
    """The group with so much room left in its metadata area."""
    return replace(vg, metadata_free_bytes=metadata_free_bytes)


def _pvs(raw: Section, known: VolumeGroup, used: Used) -> tuple[PhysicalVolume, ...]:
    by_uuid = {str(_as_section(pv).get("id")): (label, _as_section(pv)) for label, pv in raw.items()}
    if by_uuid.keys() != {pv.uuid for pv in known.pvs} or len(by_uuid) != len(raw) or used.keys() - raw.keys():
        raise NotUnderstood(f"group {known.name} has other disks than before")
    return tuple(_pv(*by_uuid[pv.uuid], pv, used) for pv in known.pvs)


def _pv(label: str, raw: Section, known: PhysicalVolume, used: Used) -> PhysicalVolume:
    _require_plain(raw, _PV_KEYS, _PV_STATUS)
    extents = _number(raw, "pe_count")
    runs = _free_runs(used[label], extents)
    if known.missing or runs is None:
        raise NotUnderstood(f"the extents of disk {known.name} don't fit together")
    allocatable = "ALLOCATABLE" in _words(raw, "status")
    longest = max(runs, default=0)
    return replace(known, extents=extents, free_extents=sum(runs), allocatable=allocatable, longest_run=longest)


def _free_runs(used: list[tuple[int, int]], extents: int) -> list[int] | None:
    """The lengths of what lies free between the used runs; None when these overlap or don't lie on the disk."""
    found, end = [], 0
    for start, length in (*sorted(used), (extents, 0)):
        if start < end:
            return None
        found.append(start - end)
        end = start + length
    return [length for length in found if length]


def _volume(part: str, known: VolumeGroup, extent_sectors: int) -> ReadVolume:
    found = metadata_text.parse(part)
    if len(found) != 1:
        raise NotUnderstood("the metadata text is cut in another place than between two volumes")
    ((name, raw),) = found.items()
    return _lv(name, _as_section(raw), known, extent_sectors)


def _lv(name: str, raw: Section, known: VolumeGroup, extent_sectors: int) -> ReadVolume:
    count = _number(raw, "segment_count")
    if count > len(raw):
        raise NotUnderstood(f"volume {name} lacks some of its {count} segments")
    segments = [f"segment{number}" for number in range(1, count + 1)]
    _require_plain(raw, _LV_KEYS.union(segments), _LV_STATUS, flags=_LV_FLAGS)
    if "VISIBLE" not in _words(raw, "status"):
        raise NotUnderstood(f"volume {name} is a part of another one")
    extents, used = 0, list[tuple[str, int, int]]()
    for segment in segments:
        extents += _segment(name, _section(raw, segment), extents, used)
    lv = LogicalVolume(
        name=name,
        vg=known.name,
        uuid=_word(raw, "id"),
        vg_uuid=known.uuid,
        size_bytes=extents * extent_sectors * SECTOR_BYTES,
        tags=Tags(_words(raw, "tags")),
        partial=False,
    )
    return ReadVolume(lv=lv, used=tuple(used))


def _segment(lv: str, raw: Section, start: int, used: list[tuple[str, int, int]]) -> int:
    """Counts what the segment takes from each disk. Returns its extents."""
    extents, stripes = _number(raw, "extent_count"), raw.get("stripes")
    count = _number(raw, "stripe_count")
    if raw.keys() - _SEGMENT_KEYS or raw.get("type") != "striped" or raw.get("start_extent") != start:
        raise NotUnderstood(f"volume {lv} has a segment that is not plain")
    if not isinstance(stripes, list) or count < 1 or len(stripes) != 2 * count or extents % count:
        raise NotUnderstood(f"volume {lv} has a segment whose stripes don't fit together")
    for disk, first in zip(stripes[::2], stripes[1::2], strict=True):
        if not isinstance(first, int):
            raise NotUnderstood(f"volume {lv} has a stripe that begins nowhere")
        used.append((sys.intern(str(disk)), first, extents // count))
    return extents


def _require_plain(
    raw: Section, keys: AbstractSet[str], status: AbstractSet[str], *, flags: AbstractSet[str] = frozenset()
) -> None:
    odd = [*(raw.keys() - keys), *(set(_words(raw, "status")) - status), *(set(_words(raw, "flags")) - flags)]
    if odd:
        raise NotUnderstood(f"the metadata text holds {', '.join(sorted(odd))}, which is not plain")


def _section(raw: Section, name: str) -> Section:
    return _as_section(raw.get(name))


def _as_section(found: object) -> Section:
    if not isinstance(found, dict):
        raise NotUnderstood("the metadata text lacks a section")
    return found


def _number(raw: Section, name: str) -> int:
    found = raw.get(name)
    if not isinstance(found, int) or found < 0:
        raise NotUnderstood(f"the metadata text has no number {name}")
    return found


def _word(raw: Section, name: str) -> str:
    found = raw.get(name)
    if not isinstance(found, str):
        raise NotUnderstood(f"the metadata text has no text {name}")
    return found


def _words(raw: Section, name: str) -> list[str]:
    found = raw.get(name, [])
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise NotUnderstood(f"the metadata text has no list {name}")
    return [str(word) for word in found]
