"""CSI names to LV names and back-checks of ids that come from outside.

LVM's rules: lvm(8), "VALID NAMES"; device-mapper doubles every `-` and allows 127 bytes for VG and LV together.
"""

import hashlib
import re
from typing import NewType

from csi.core.errors import InvalidInput, NotFound

VolumeId = NewType("VolumeId", str)
"""The id of a volume, which is its LV's name: made of a CSI name, read from an LV, or checked where it comes in."""

CSI_STRING_LIMIT_BYTES = 128
_LV_LIMIT = 63
_HASHED_PREFIX = "sl-"
_LEGAL = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
_RESERVED_STARTS = ("snapshot", "pvmove", _HASHED_PREFIX)
_RESERVED_PARTS = (
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare", "_rimage",
    "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig",
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def name_digest(csi_name: str) -> str:
    """SHA-256 of the CSI name in hex: the key under which a repeated CreateVolume finds its volume."""
    return hashlib.sha256(csi_name.encode()).hexdigest()


def lv_name(csi_name: str) -> VolumeId:
    """The LV name, which is also the volume id, for a CSI name.

    A legal, unreserved name is kept, so that an operator recognises the PV in `lvs`; any other becomes `sl-` and the
    first 40 hex digits of its SHA-256. The limit of 63 counts `-` twice, as device-mapper does.
    """
    usable = (
        _LEGAL.fullmatch(csi_name) is not None
        and len(csi_name.replace("-", "--")) <= _LV_LIMIT
        and csi_name not in (".", "..")
        and not csi_name.startswith(_RESERVED_STARTS)
        and not any(part in csi_name for part in _RESERVED_PARTS)
    )
    return VolumeId(csi_name if usable else _HASHED_PREFIX + name_digest(csi_name)[:40])


def checked_csi_name(value: str) -> str:
    """A CSI `name` that keeps the specification's limits. Raises `InvalidInput`."""
    if not value:
        raise InvalidInput("name", "is required and missing")
    size = len(value.encode())
    if size > CSI_STRING_LIMIT_BYTES:
        raise InvalidInput("name", f"is {size} bytes long; CSI allows at most {CSI_STRING_LIMIT_BYTES}")
    if _CONTROL.search(value):
        raise InvalidInput("name", "contains control characters, which CSI forbids")
    return value


def checked_id(value: str) -> VolumeId:
    """A volume id that comes from outside. Raises `NotFound` for one that this driver can't have given out."""
    if len(value) > _LV_LIMIT or _LEGAL.fullmatch(value) is None or value in (".", ".."):
        raise NotFound(f"there is no volume {value[:80]!r} on this node")
    return VolumeId(value)


_VG = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,62}")


def checked_vg_name(value: str, field: str) -> str:
    """A volume group name that LVM would accept. Raises `InvalidInput` naming `field`."""
    if _VG.fullmatch(value) is None or value in (".", ".."):
        raise InvalidInput(field, f"{value!r} is not a legal volume group name (letters, digits and + _ . -)")
    return value
