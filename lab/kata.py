"""Plays the Kata shim: reads a direct volume's record under both runtimes' rules, plugs the device, hands it to the guest.

What each runtime accepts, refuses and silently ignores was read from Kata 4.1.0. `interpret` is pure; `hand_over` runs
inside the node. This is the lab's, never the product's: the driver writes records and knows no runtime.
"""

import base64
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from lab import vm

REGISTRY = Path("/run/kata-containers/shared/direct-volumes")
RECORD = "mountInfo.json"
_RS_TYPES = ("directvol",)
_RS_REQUIRED = ("volume-type", "device", "fstype")


class Rules(StrEnum):
    """Which runtime is played."""

    GO = "go"
    RS = "rs"
    GO_WITHOUT_BLOCK = "go-without-block"
    """The Go runtime as it ships since 3.26: `disable_block_device_use = true`, direct volumes are skipped silently."""


class RuntimeRefused(Exception):
    """The runtime fails the container's creation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectVolume:
    """A record that the runtime takes."""

    device: str
    fstype: str
    options: tuple[str, ...]
    read_only: bool
    driver_options: tuple[str, ...] = ()
    """What the Go runtime makes of `metadata`; the Rust runtime doesn't look at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainDirectory:
    """The runtime shares the host directory at the target path instead; the pod gets whatever lies there."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """kata-agent's `Storage` message."""

    driver: str
    driver_options: tuple[str, ...]
    source: str
    fstype: str
    options: tuple[str, ...]
    mount_point: str
    fs_group: int | None = None
    shared: bool = False


def encoded(target_path: str) -> str:
    """The registry's directory name for a path: URL-safe base64 with padding."""
    return base64.urlsafe_b64encode(target_path.encode()).decode()


def interpret(
    entries: dict[str, bytes] | None, rules: Rules, *, oci_read_only: bool = False
) -> DirectVolume | PlainDirectory:
    """What the runtime makes of a registry directory: its files by name, or None when it is absent."""
    if rules is Rules.GO_WITHOUT_BLOCK:
        return PlainDirectory(reason="disable_block_device_use")
    if entries is None:
        return PlainDirectory(reason="no entry")
    content = entries.get(RECORD)
    if rules is Rules.GO:
        return _go(content)
    return _rs(content, oci_read_only)


def _go(content: bytes | None) -> DirectVolume | PlainDirectory:
    """Missing or broken records are logged and the mount goes on as an ordinary directory; `volume-type` isn't read."""
    if content is None:
        return PlainDirectory(reason="no record in the entry")
    try:
        raw = {key.lower(): value for key, value in json.loads(content).items()}
        options, metadata = tuple(raw.get("options") or ()), raw.get("metadata") or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            return PlainDirectory(reason="metadata value is not a string")
    except (ValueError, AttributeError):
        return PlainDirectory(reason="record is not JSON")
    driver_options = [f"encryption_key={metadata['encryptionKey']}"] if "encryptionKey" in metadata else []
    if metadata.get("createFilesystem") == "true":
        driver_options.append("create_filesystem")
    return DirectVolume(
        device=raw.get("device", ""),
        fstype=raw.get("fstype", ""),
        options=options,
        read_only="ro" in options,
        driver_options=tuple(driver_options),
    )


def _rs(content: bytes | None, oci_read_only: bool) -> DirectVolume:
    """Anything that is not a whole, exact record fails the container."""
    if content is None:
        raise RuntimeRefused("the entry has no mountInfo.json")
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise RuntimeRefused(f"mountInfo.json: {error}") from error
    for key in _RS_REQUIRED:
        if not isinstance(raw.get(key), str):
            raise RuntimeRefused(f"mountInfo.json: missing field {key}")
    for key, kind in (("options", list), ("metadata", dict)):
        if key in raw and not isinstance(raw[key], kind):
            raise RuntimeRefused(f"mountInfo.json: {key} has the wrong type")
    if any(not isinstance(value, str) for value in raw.get("metadata", {}).values()):
        raise RuntimeRefused("mountInfo.json: metadata value is not a string")
    if raw["volume-type"] not in _RS_TYPES:
        raise RuntimeRefused(f"volume type {raw['volume-type']!r} is not valid for a block device")
    options = tuple(option for option in raw.get("options", []) if option not in ("bind", "rbind"))
    if oci_read_only and "ro" not in options:
        options = (*options, "ro")
    return DirectVolume(device=raw["device"], fstype=raw["fstype"], options=options, read_only=oci_read_only)


def read_entry(target_path: str) -> dict[str, bytes] | None:
    """The files of a registry directory."""
    folder = REGISTRY / encoded(target_path)
    if not folder.is_dir():
        return None
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def hand_over(guest: str, target_path: str, rules: str, driver: str = "virtio-scsi") -> dict[str, Any]:
    """Inside the node: what the shim does with one mount of a container. Answers the Storage that kata-agent would get,
    and the device that the guest sees, or why the pod gets the host's directory.
    """
    found = interpret(read_entry(target_path), Rules(rules))
    if isinstance(found, PlainDirectory):
        return {"plain_directory": found.reason}
    Path(found.device).stat()  # Go and Rust both fail here when the node is missing
    if rules == Rules.GO:
        (REGISTRY / encoded(target_path) / f"sandbox-{guest}").touch(mode=0o600)
    address = vm.plug(guest, found.device, driver, found.read_only, "")
    storage = Storage(
        driver=address["driver"],
        driver_options=found.driver_options,
        source=address["source"],
        fstype=found.fstype,
        options=found.options,
        mount_point=f"/run/kata-containers/sandbox/storage/{encoded(address['source'])}",
    )
    device = vm.call(guest, "find_device", address, 60)
    return {"storage": asdict(storage), "device": device}
