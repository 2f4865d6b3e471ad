"""LVM's label and metadata area headers: bytes of a disk to where the group's metadata text is. Nothing is guessed.

Formats: LVM2's lib/label/label.h (label in one of the first four sectors), lib/format_text/layout.h (physical volume header
behind it, and the 512-byte header of each metadata area). Texts lie in a circular buffer behind that header; each commit
writes a new one behind the old one and then, in one sector, the header that names it.
"""

import itertools
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from csi.core.errors import SealedLocalError
from csi.core.size import SECTOR_BYTES

LABEL_BYTES: Final = 4 * SECTOR_BYTES
HEADER_BYTES: Final = SECTOR_BYTES
_LABEL: Final = struct.Struct("<8sQII8s")
_LABEL_MAGIC: Final = b"LABELONE"
_LABEL_TYPE: Final = b"LVM2 001"
_LABEL_SUM_FROM: Final = 20
_PV_HEADER: Final = struct.Struct("<32sQ")
_AREA: Final = struct.Struct("<QQ")
_EXTENSION: Final = struct.Struct("<II")
_IN_USE: Final = 1
_AREA_HEADER: Final = struct.Struct("<I16sIQQ")
_AREA_MAGIC: Final = b" LVM2 x[5A%r0N*>"
_AREA_SUM_FROM: Final = 4
_LOCATION: Final = struct.Struct("<QQII")
_IGNORED: Final = 1
_CRC_START: Final = 0xF597A6CF
_ALL_ONES: Final = 0xFFFFFFFF


class NotUnderstood(SealedLocalError):
    """Bytes that are not what this reader knows well: LVM itself has to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A place on a disk, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a disk's label says of it."""

    pv_uuid: str
    areas: tuple[Area, ...]
    """Its metadata areas, the ones that are not in use included."""
    in_use: bool
    """Whether it belongs to a group, as the disk itself knows: its own areas need not hold the group's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPlace:
    """Where an area's committed text is. `parts` is one place, or two where the text goes over the end of the buffer."""

    parts: tuple[Area, ...]
    size: int
    checksum: int
    room: int
    """Bytes that a text may have so that the next one of this size fits beside it."""


def crc(data: bytes) -> int:
    """LVM's checksum: CRC-32 with a start of its own and no inversion at the end."""
    return zlib.crc32(data, _CRC_START ^ _ALL_ONES) ^ _ALL_ONES


def label(head: bytes) -> Label | None:
    """The label in a disk's first four sectors; None when there is none. Raises `NotUnderstood` for a damaged one."""
    sectors = [head[at : at + SECTOR_BYTES] for at in range(0, LABEL_BYTES, SECTOR_BYTES)]
    found = [(number, sector) for number, sector in enumerate(sectors) if sector.startswith(_LABEL_MAGIC)]
    if not found:
        return None
    if len(found) > 1:
        raise NotUnderstood("the disk has two LVM labels")
    number, sector = found[0]
    _, at, checksum, offset, kind = _LABEL.unpack_from(sector)
    if kind != _LABEL_TYPE or at != number or crc(sector[_LABEL_SUM_FROM:]) != checksum:
        raise NotUnderstood("the disk's LVM label is damaged or of another version")
    return _physical_volume(sector, offset)


def _physical_volume(sector: bytes, offset: int) -> Label:
    try:
        raw_uuid, _ = _PV_HEADER.unpack_from(sector, offset)
        uuid = raw_uuid.decode("ascii")
        _, behind = _areas(sector, offset + _PV_HEADER.size)
        areas, behind = _areas(sector, behind)
        version, flags = _EXTENSION.unpack_from(sector, behind)
    except (struct.error, UnicodeDecodeError) as error:
        raise NotUnderstood("the disk's LVM label is damaged") from error
    return Label(pv_uuid=dashed(uuid), areas=areas, in_use=bool(version and flags & _IN_USE))


def _areas(sector: bytes, at: int) -> tuple[tuple[Area, ...], int]:
    """A list of places that ends with an empty one, and the position behind it."""
    found: list[Area] = []
    while True:
        offset, size = _AREA.unpack_from(sector, at)
        at += _AREA.size
        if offset == 0:
            return tuple(found), at
        found.append(Area(offset=offset, size=size))


def dashed(uuid: str) -> str:
    """A UUID of the label as reports and the text write it."""
    cuts = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(uuid[start:end] for start, end in itertools.pairwise(cuts))


def text_place(area: Area, header: bytes) -> TextPlace | None:
    """Where the committed text is, by the area's header; None for an area that holds none or is set to be ignored.

    Raises `NotUnderstood` for a header that is damaged, or names a place outside of its area.
    """
    whole = header[:HEADER_BYTES]
    if len(whole) < HEADER_BYTES:
        raise NotUnderstood("a metadata area lies behind the end of its disk")
    checksum, magic, version, start, size = _AREA_HEADER.unpack_from(whole)
    if magic != _AREA_MAGIC or version != 1 or crc(whole[_AREA_SUM_FROM:]) != checksum:
        raise NotUnderstood("the header of a metadata area is damaged or of another version")
    if (start, size) != (area.offset, area.size):
        raise NotUnderstood("the header of a metadata area belongs to another area")
    offset, length, text_sum, flags = _LOCATION.unpack_from(header, _AREA_HEADER.size)
    if flags & _IGNORED or not offset or not length:
        return None
    if not HEADER_BYTES <= offset < size or length > size - HEADER_BYTES:
        raise NotUnderstood("the header of a metadata area names a place outside of it")
    beyond = max(0, offset + length - size)
    parts = [Area(offset=start + offset, size=length - beyond)]
    if beyond:
        parts.append(Area(offset=start + HEADER_BYTES, size=beyond))
    return TextPlace(parts=tuple(parts), size=length, checksum=text_sum, room=(size - HEADER_BYTES) // 2)


def require_whole(place: TextPlace, text: bytes) -> bytes:
    """The text, without the zero byte that ends it. Raises `NotUnderstood` unless it is the one that the header names."""
    if len(text) != place.size or crc(text) != place.checksum:
        raise NotUnderstood("a metadata text is not the one that its header names")
    return text.rstrip(b"\0")
