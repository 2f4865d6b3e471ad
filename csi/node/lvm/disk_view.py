"""What LVM's labels and area headers on this node's disks say now: whose each disk is, and which text is current.

One direct read a disk. Nothing here decides which disk a group uses: that is LVM's to say, once; this shows whether
anything changed since.
"""

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from csi.core.device_number import DeviceNumber
from csi.core.size import SECTOR_BYTES
from csi.node.lvm import metadata_area
from csi.node.lvm.block_devices import BlockDevice, suspended
from csi.node.lvm.disk_reader import DiskReader, Place, Trouble
from csi.node.lvm.metadata_area import Area, Label, NotUnderstood, TextPlace

_HEAD_BYTES: Final = 8192
"""Label and, in every group that was made without odd options, the first area's header."""
_BEGINNING_BYTES: Final = 128 << 10
_TRIES: Final = 5
_COMMIT_SECONDS: Final = 0.01
"""LVM writes the headers of a group's disks one after the other, within a few milliseconds."""
_TEXT_LIMIT_BYTES: Final = 64 << 20
_BEGINNING: Final = re.compile(rb"([A-Za-z0-9_+.-]+) \{\nid = \"([A-Za-z0-9-]+)\"\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupName:
    """The group that a disk's text names."""

    name: str
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskView:
    """One disk at one moment. Two that are equal show that no group's change was committed to it in between."""

    device: BlockDevice
    label: Label | None = None
    headers: tuple[bytes, ...] = ()
    group: GroupName | None = None
    """None without a text, and where it can't be told."""
    trouble: str = ""
    """Why it can't be told what is on the disk."""
    frozen: bool = False

    @property
    def frame(self) -> tuple[object, ...]:
        """All but the area headers: what stays the same while a group keeps its disks."""
        return self.device, self.label, self.group, self.trouble, self.frozen

    @property
    def texts(self) -> tuple[TextPlace, ...]:
        """Where its areas have their texts. Raises `NotUnderstood` for a header that is damaged."""
        areas = self.label.areas if self.label is not None else ()
        places = (metadata_area.text_place(area, header) for area, header in zip(areas, self.headers, strict=True))
        return tuple(place for place in places if place is not None)

    @property
    def is_unused(self) -> bool:
        """Whether it has LVM's label, and belongs to no group as far as the disk itself knows. A header that can't be read
        may name a group's text.
        """
        if self.label is None or self.trouble or self.label.in_use or self.group:
            return False
        try:
            return not self.texts
        except NotUnderstood:
            return False

    @property
    def why_silent(self) -> str:
        """Why it doesn't tell its group, though it should; empty for a disk that tells one, and for one that has none."""
        try:
            return self.trouble if self.trouble or not self.texts else f"{self.device.path}: its text can't be read"
        except NotUnderstood as error:
            return f"{self.device.path}: {error}"


@dataclass(slots=True)
class DiskViews:
    """Looks at disks. The names that texts begin with are remembered by the headers that name the texts."""

    reader: DiskReader
    _names: "Mapping[_Key, GroupName]" = field(default_factory=dict)
    _texts: "dict[_Key, bytes]" = field(default_factory=dict)
    """First texts that the last look has read for their names, until somebody asks for them."""
    _odd: tuple[DiskView, ...] = ()

    def look(self, devices: Sequence[BlockDevice]) -> tuple[DiskView, ...]:
        """All of these disks, read at the same time."""
        asked = [device for device in devices if not suspended(device.name)]
        heads = self.reader.read([self._place(device, Area(offset=0, size=_HEAD_BYTES)) for device in asked])
        labelled = [self._labelled(device, head) for device, head in zip(asked, heads, strict=True)]
        named = self._with_names(self._with_far_headers(labelled, heads))
        held_back = [
            DiskView(device=device, trouble=f"{device.path} is suspended", frozen=True)
            for device in devices
            if device not in asked
        ]
        return (*named, *held_back)

    def settled(self, devices: Sequence[BlockDevice]) -> tuple[DiskView, ...]:
        """All of these disks at a moment at which nobody is in the middle of a commit; as they are after some tries."""
        views = self.look(devices)
        for _ in range(_TRIES):
            if views == self._odd or not _in_a_commit(views):
                return views
            time.sleep(_COMMIT_SECONDS)
            views = self.look(devices)
        # A damaged disk, or a commit that was cut off: it is so for good, and nobody waits for it again.
        self._odd = views
        return views

    def text(self, view: DiskView, place: TextPlace) -> bytes:
        """A whole text of a disk. Raises `NotUnderstood` when it can't be read, or isn't the one that the header names."""
        if place.size > _TEXT_LIMIT_BYTES:
            raise NotUnderstood("the metadata text is larger than any")
        known = self._texts.pop(_key(view), b"")
        if len(known) == place.size and metadata_area.crc(known) == place.checksum:
            return metadata_area.require_whole(place, known)
        parts = self.reader.read([self._place(view.device, part) for part in place.parts])
        read = [part for part in parts if isinstance(part, bytes)]
        if len(read) != len(parts):
            raise NotUnderstood(f"the metadata text on {view.device.path} can't be read")
        return metadata_area.require_whole(place, b"".join(read))

    @staticmethod
    def _place(device: BlockDevice, area: Area) -> Place:
        length = min(area.size, max(0, device.sectors * SECTOR_BYTES - area.offset))
        return Place(path=device.path, number=device.number, offset=area.offset, length=length)

    @staticmethod
    def _labelled(device: BlockDevice, head: bytes | Trouble) -> DiskView:
        if isinstance(head, Trouble):
            return DiskView(device=device, trouble=head.why, frozen=head.frozen)
        try:
            return DiskView(device=device, label=metadata_area.label(head))
        except NotUnderstood as error:
            # The label itself is part of the text, so that another damage is another view.
            return DiskView(
                device=device,
                trouble=f"{device.path}: {error} ({metadata_area.crc(head[: metadata_area.LABEL_BYTES]):08x})",
            )

    def _with_far_headers(self, views: Sequence[DiskView], heads: Sequence[bytes | Trouble]) -> list[DiskView]:
        """The headers of all areas: most were read with the label, a second area lies at the disk's end."""
        far = [
            (view, area)
            for view in views
            for area in _areas(view)
            if area.offset + metadata_area.HEADER_BYTES > _HEAD_BYTES
        ]
        places = [self._place(view.device, _header(area)) for view, area in far]
        read: Mapping[tuple[DeviceNumber, int], bytes | Trouble] = {
            (place.number, place.offset): found for place, found in zip(places, self.reader.read(places), strict=True)
        }
        return [_with_headers(view, head, read) for view, head in zip(views, heads, strict=True)]

    def _with_names(self, views: Sequence[DiskView]) -> list[DiskView]:
        known = self._names
        names = {_key(view): known[_key(view)] for view in views if _key(view) in known}
        beginnings: list[tuple[DiskView, TextPlace]] = []
        for view in views:
            if view.headers and _key(view) not in names:
                with contextlib.suppress(NotUnderstood):
                    beginnings += [(view, place) for place in view.texts[:1]]
        places = [self._place(view.device, _beginning(place)) for view, place in beginnings]
        texts: dict[_Key, bytes] = {}
        for (view, _), found in zip(beginnings, self.reader.read(places), strict=True):
            match = _BEGINNING.match(found) if isinstance(found, bytes) else None
            if match is not None:
                names[_key(view)] = GroupName(name=match[1].decode(), uuid=match[2].decode())
                texts[_key(view)] = match.string
        # Others look at the same time: what they see is whole, at worst without what was found here.
        self._names, self._texts = names, texts
        return [_named(view, names.get(_key(view))) for view in views]


_Key = tuple[DeviceNumber, tuple[bytes, ...]]


def _key(view: DiskView) -> _Key:
    return view.device.number, view.headers


def _in_a_commit(views: Sequence[DiskView]) -> bool:
    """Whether the disks of a group name different texts, or a text was overwritten before its beginning was read."""
    commits: dict[GroupName | None, set[tuple[int, int]]] = {}
    for view in views:
        with contextlib.suppress(NotUnderstood):
            commits.setdefault(view.group, set()).update((place.size, place.checksum) for place in view.texts)
    nameless = commits.pop(None, set())
    return bool(nameless) or any(len(texts) > 1 for texts in commits.values())


def _areas(view: DiskView) -> tuple[Area, ...]:
    return view.label.areas if view.label is not None else ()


def _header(area: Area) -> Area:
    return Area(offset=area.offset, size=metadata_area.HEADER_BYTES)


def _beginning(place: TextPlace) -> Area:
    """Most texts are small, and whoever wants the name of a new one wants all of it next."""
    first = place.parts[0]
    return Area(offset=first.offset, size=min(first.size, _BEGINNING_BYTES))


def _with_headers(
    view: DiskView, head: bytes | Trouble, far: Mapping[tuple[DeviceNumber, int], bytes | Trouble]
) -> DiskView:
    headers = []
    for area in _areas(view):
        near = head[area.offset :][: metadata_area.HEADER_BYTES] if isinstance(head, bytes) else b""
        found = far.get((view.device.number, area.offset), near)
        if isinstance(found, Trouble):
            return DiskView(device=view.device, label=view.label, trouble=found.why, frozen=found.frozen)
        headers.append(found)
    return DiskView(
        device=view.device, label=view.label, headers=tuple(headers), trouble=view.trouble, frozen=view.frozen
    )


def _named(view: DiskView, group: GroupName | None) -> DiskView:
    return DiskView(
        device=view.device,
        label=view.label,
        headers=view.headers,
        group=group,
        trouble=view.trouble,
        frozen=view.frozen,
    )
