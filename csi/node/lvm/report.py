"""`lvm fullreport --reportformat json`: LVM's strings to model objects. Read with LVM 2.03.16 to 2.03.31.

Every value of that report is a string; tags are joined by commas. Letters of the
attribute strings: lvs(8) and vgs(8).
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from csi.core.device_number import DeviceNumber
from csi.core.errors import ToolFailed
from csi.node.lvm.model import AllocationPolicy, LogicalVolume, PhysicalVolume, Report, Tags, VolumeGroup

VG_FIELDS: Final = (
    "vg_name,vg_uuid,vg_extent_size,vg_extent_count,vg_free_count,vg_attr,vg_mda_free,vg_allocation_policy,max_lv"
)
PV_FIELDS: Final = "pv_name,pv_uuid,pv_pe_count,pv_pe_alloc_count,pv_attr,pv_missing,pv_major,pv_minor"
LV_FIELDS: Final = "lv_name,lv_uuid,lv_size,lv_tags,lv_attr,origin,pool_lv"
PV_SEGMENT_FIELDS: Final = "pv_name,pvseg_start,pvseg_size,segtype"
_COPIED: Final = re.compile(r"Not using device (\S+) for PV (\w+(?:-\w+)+)")
_FREE: Final = "free"


class _Vg(msgspec.Struct):
    vg_name: str
    vg_uuid: str
    vg_extent_size: str
    vg_extent_count: str
    vg_free_count: str
    vg_attr: str
    vg_mda_free: str
    vg_allocation_policy: str
    max_lv: str


class _Pv(msgspec.Struct):
    pv_name: str
    pv_uuid: str
    pv_pe_count: str
    pv_pe_alloc_count: str
    pv_attr: str
    pv_missing: str
    pv_major: str
    pv_minor: str


class _Lv(msgspec.Struct):
    lv_name: str
    lv_uuid: str
    lv_size: str
    lv_tags: str
    lv_attr: str
    origin: str
    pool_lv: str


class _PvSegment(msgspec.Struct):
    pv_name: str
    pvseg_size: str
    segtype: str


class _Section(msgspec.Struct):
    vg: list[_Vg] = []
    pv: list[_Pv] = []
    lv: list[_Lv] = []
    pvseg: list[_PvSegment] = []


class _Full(msgspec.Struct):
    report: list[_Section]


_decoder = msgspec.json.Decoder(_Full)


def parse(text: bytes, said: bytes = b"") -> Report:
    """The report as model objects. `said` is what LVM wrote to standard error meanwhile, the only place where it tells of a
    copied disk. Raises `ToolFailed` when the report has another shape than the one asked for.
    """
    copies = {match[2]: match[1] for match in _COPIED.finditer(said.decode(errors="backslashreplace"))}
    try:
        sections = _decoder.decode(text).report
        groups = [section for section in sections if section.vg and section.vg[0].vg_name]
        return Report(
            vgs=tuple(_vg(section, copies) for section in groups),
            unused=tuple(
                _pv(pv, section, copies)
                for section in sections
                if section not in groups
                for pv in section.pv
                if _is_unused(pv)
            ),
        )
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        raise ToolFailed(f"LVM's report can't be read ({error}); is another lvm than lvm2 2.03 installed?") from error


def _vg(section: _Section, copies: Mapping[str, str]) -> VolumeGroup:
    raw = section.vg[0]
    return VolumeGroup(
        name=raw.vg_name,
        uuid=raw.vg_uuid,
        metadata_free_bytes=int(raw.vg_mda_free),
        policy=AllocationPolicy.read(raw.vg_allocation_policy),
        max_lv=int(raw.max_lv),
        extent_bytes=int(raw.vg_extent_size),
        extents=int(raw.vg_extent_count),
        free_extents=int(raw.vg_free_count),
        writable=raw.vg_attr[0] == "w",
        exported=raw.vg_attr[2] == "x",
        partial=raw.vg_attr[3] == "p",
        pvs=tuple(_pv(pv, section, copies) for pv in section.pv),
        lvs=tuple(_lv(lv, raw) for lv in section.lv if lv.lv_name),
    )


def _pv(raw: _Pv, section: _Section, copies: Mapping[str, str]) -> PhysicalVolume:
    runs = [int(one.pvseg_size) for one in section.pvseg if one.pv_name == raw.pv_name and one.segtype == _FREE]
    return PhysicalVolume(
        name=raw.pv_name,
        uuid=raw.pv_uuid,
        extents=int(raw.pv_pe_count),
        free_extents=int(raw.pv_pe_count) - int(raw.pv_pe_alloc_count),
        allocatable=raw.pv_attr[0] == "a",
        missing=raw.pv_missing != "",
        device=DeviceNumber(int(raw.pv_major), int(raw.pv_minor)) if int(raw.pv_major) > 0 else None,
        longest_run=max(runs, default=0),
        copy=copies.get(raw.pv_uuid, ""),
    )


def _is_unused(raw: _Pv) -> bool:
    """The first letter would be `u` for a disk of a group that LVM can't see, `d` for a copy of another disk."""
    return raw.pv_attr[0] == "-" and raw.pv_missing == "" and int(raw.pv_pe_alloc_count) == 0


def _lv(raw: _Lv, vg: _Vg) -> LogicalVolume:
    return LogicalVolume(
        name=raw.lv_name,
        vg=vg.vg_name,
        uuid=raw.lv_uuid,
        vg_uuid=vg.vg_uuid,
        size_bytes=int(raw.lv_size),
        tags=Tags(tag for tag in raw.lv_tags.split(",") if tag),
        partial=raw.lv_attr[8] == "p",
        origin=raw.origin,
        pool=raw.pool_lv,
        is_origin=raw.lv_attr[0] in "oO",
        # The letter of the allocation policy is a capital one while the LV is locked against allocation.
        is_locked=raw.lv_attr[2].isupper(),
    )
