"""The entry of a direct volume in a kata-agent policy: Kata's policy tool knows none. On the tenant's machine. No I/O.

The tool takes a claim of a filesystem for a folder that the host shares. Such a policy refuses the volume's device, and
allows the host to bind an empty folder in its place. The entry that is made here turns both around.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from csi.core.errors import InvalidInput

_DATA: Final = "\npolicy_data := "
_SHARED: Final = "$(sfprefix)"
_OPTIONS: Final = ["rbind", "rprivate", "rw"]
_MOUNT_POINT: Final = "$(spath)/$(b64_device_id)"
_SECURE_MOUNT: Final = ("encryption_key=ephemeral", "create_filesystem")
"""What Kata makes of a sealed volume's record; by these words the agent asks its confidential-data-hub."""
_NAME: Final = "io.kubernetes.cri.container-name"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectVolume:
    """Where a pod mounts the volume, and what its record says. `container` None: in every container that mounts there."""

    mount_path: str
    fstype: str = "ext4"
    sealed: bool = False
    container: str | None = None


def with_volume(policy: str, volume: DirectVolume, source: str) -> str:
    """The policy with the volume's entry, its rules unchanged. Raises `InvalidInput` for a text of another kind, for a path
    where no claim is mounted, and for a mount that is read-only: the agent's rules then refuse every direct volume.
    """
    rules, data = _taken_apart(policy, source)
    containers = [one for one in _members(data, "containers", source) if _is_meant(one, volume)]
    changed = [one for one in containers if _enter(one, volume, source)]
    if not changed:
        where = "" if volume.container is None else f" of container {volume.container}"
        found = sorted({mount["destination"] for one in containers for mount in _shared(one, source)})
        raise InvalidInput(
            source, f"no claim is mounted at {volume.mount_path}{where}; it could be: {', '.join(found) or 'nowhere'}"
        )
    return f"{rules}{_DATA}{json.dumps(data, indent=2)}\n"


def _taken_apart(policy: str, source: str) -> tuple[str, dict[str, Any]]:
    rules, marker, text = policy.rpartition(_DATA)
    if not marker:
        raise InvalidInput(source, "holds no policy_data; it has to be the text that `genpolicy --raw-out` prints")
    try:
        data = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(source, f"its policy_data is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidInput(source, "its policy_data is no object")
    return rules, data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could disagree about a member that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _is_meant(container: dict[str, Any], volume: DirectVolume) -> bool:
    return volume.container is None or _member(_member(container, "OCI"), "Annotations").get(_NAME) == volume.container


def _shared(container: dict[str, Any], source: str) -> Iterator[dict[str, Any]]:
    """The mounts that the tool took for shared folders."""
    for mount in _members(_member(container, "OCI"), "Mounts", source):
        if isinstance(mount.get("destination"), str) and str(mount.get("source", "")).startswith(_SHARED):
            yield mount


def _enter(container: dict[str, Any], volume: DirectVolume, source: str) -> bool:
    """Change one container; False when it doesn't mount the volume."""
    mounts = [one for one in _shared(container, source) if one["destination"] == volume.mount_path]
    if not mounts:
        return False
    if len(mounts) > 1 or mounts[0].get("type_") != "bind" or mounts[0].get("options") != _OPTIONS:
        raise InvalidInput(
            source,
            f"the mount at {volume.mount_path} is not a claim's, or is read-only; only rw can be a direct volume",
        )
    mounts[0]["source"] = ""
    _members(container, "storages", source).append(
        {
            "driver": "",
            "driver_options": list(_SECURE_MOUNT) if volume.sealed else [],
            "source": "",
            "fstype": volume.fstype,
            "options": [],
            "mount_point": _MOUNT_POINT,
            "fs_group": None,
            "shared": False,
        }
    )
    return True


def _member(parent: dict[str, Any], name: str) -> dict[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, dict) else {}


def _members(parent: dict[str, Any], name: str, source: str) -> list[dict[str, Any]]:
    found = parent.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InvalidInput(source, f"its policy_data has no list {name}; the policy tool is of another version")
    return found
