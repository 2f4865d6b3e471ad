"""Kata's direct-volume record (`mountInfo.json`): the directory name of a path, and the content that both runtimes take.

Rules read from Kata 4.1.0, Go and Rust runtime: only string values in `metadata`, no null members, `volume-type` must be
`directvol` for the Rust runtime and is not looked at by the Go one.
"""

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from csi.core.errors import InvalidInput

FILE_NAME: Final = "mountInfo.json"
PATH_LIMIT_BYTES: Final = 189
"""Longest target path whose encoded name still fits NAME_MAX (255)."""

VOLUME_ID_KEY: Final = "sealed-local.csi/volume-id"
PROFILE_KEY: Final = "sealed-local.csi/profile"

SECURE_MOUNT: Final = {"encryptionKey": "ephemeral", "createFilesystem": "true"}
"""What makes Kata's Go runtime and its agent ask the confidential-data-hub for the mount: these, and only these. A stock
one then formats the device."""
_HOST_ONLY = frozenset(
    {"bind", "rbind", "_netdev", "nofail", "auto", "noauto", "user", "nouser", "users", "loop", "rw"}
)
_HOST_ONLY_PREFIXES = ("context=", "fscontext=", "defcontext=", "rootcontext=", "x-", "comment=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the runtime is asked to plug and mount. It lies in clear on a host that guests don't trust: only hints."""

    device: str
    fstype: str
    options: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def volume_id(self) -> str | None:
        """The volume that the record is for, if this driver wrote it."""
        return self.metadata.get(VOLUME_ID_KEY)

    def means(self, other: "Record") -> bool:
        """Whether both ask a runtime for the same. Metadata that this version doesn't know is left to those that do."""
        return (
            self.device == other.device
            and self.fstype == other.fstype
            and set(self.options) == set(other.options)
            and all(self.metadata.get(key) == other.metadata.get(key) for key in _COMPARED)
        )


_COMPARED: Final = (VOLUME_ID_KEY, PROFILE_KEY, *SECURE_MOUNT)


class _Raw(msgspec.Struct, rename="kebab"):
    volume_type: str
    device: str
    fstype: str
    metadata: dict[str, str] = {}
    options: list[str] = []


def directory_name(target_path: str) -> str:
    """The directory below the registry root for a CSI target path: URL-safe base64 with padding, one path component.

    Raises `InvalidInput` when the path is empty (whose "directory" would be the whole registry) or too long for Kata.
    """
    raw = target_path.encode()
    if not raw:
        raise InvalidInput("target_path", "is required and missing")
    if len(raw) > PATH_LIMIT_BYTES:
        raise InvalidInput(
            "target_path",
            f"is {len(raw)} bytes long; Kata can look up at most {PATH_LIMIT_BYTES}. "
            "Use a shorter kubelet root directory or a shorter PersistentVolume name.",
        )
    return base64.urlsafe_b64encode(raw).decode()


def target_path(name: str) -> str | None:
    """The target path that a registry directory stands for; None for a name that Kata would not have made."""
    try:
        raw = base64.urlsafe_b64decode(name.encode())
        # The decoder passes over what is no base64: such a name, a copy that somebody made, is looked up by nobody.
        return raw.decode() if base64.urlsafe_b64encode(raw) == name.encode() else None
    except (binascii.Error, UnicodeError):
        return None


def guest_options(flags: Iterable[str], *, read_only: bool) -> tuple[str, ...]:
    """Mount flags that make sense inside a guest. Kata passes unknown words to the filesystem, which breaks the mount."""
    kept = [flag for flag in flags if flag not in _HOST_ONLY and not flag.startswith(_HOST_ONLY_PREFIXES)]
    if read_only and "ro" not in kept:
        kept.append("ro")
    return tuple(kept)


def encode(record: Record) -> bytes:
    """The file's content. Members that are empty are left out: the Rust runtime refuses nulls."""
    content: dict[str, object] = {"volume-type": "directvol", "device": record.device, "fstype": record.fstype}
    if record.metadata:
        content["metadata"] = record.metadata
    if record.options:
        content["options"] = list(record.options)
    return json.dumps(content, ensure_ascii=False, sort_keys=True).encode()


def decode(content: bytes) -> Record | None:
    """A record that somebody wrote; None when it is not one that both runtimes would take."""
    try:
        raw = msgspec.json.decode(content, type=_Raw)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return Record(device=raw.device, fstype=raw.fstype, options=tuple(raw.options), metadata=raw.metadata)
