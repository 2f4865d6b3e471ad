"""What the cluster shows, as far as it says why a claim is stuck. Members that aren't read here are ignored. Pure.

Shapes: the Kubernetes API, storage.k8s.io/v1 and events of v1, as `kubectl get -o json` prints them.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from csi.core.errors import InvalidInput
from csi.core.kubernetes import Claim, Metadata, Object, Pod, Reference, StorageClass, Volume


class Event(Object, frozen=True, kw_only=True):
    """Something that was told of an object. Two APIs wrote its time in two places."""

    involved_object: Reference
    reason: str = ""
    message: str = ""
    type: str = "Normal"
    last_timestamp: str | None = None
    event_time: str | None = None

    @property
    def when(self) -> str:
        """Sortable as text: both are RFC 3339 in UTC."""
        return self.last_timestamp or self.event_time or ""


class _Topology(Object, frozen=True, kw_only=True):
    match_labels: Mapping[str, str] = {}


class Capacity(Object, frozen=True, kw_only=True):
    """A CSIStorageCapacity: what a driver said of the room for one class on one node."""

    metadata: Metadata
    storage_class_name: str
    node_topology: _Topology | None = None
    capacity: str | None = None
    maximum_volume_size: str | None = None

    @property
    def node(self) -> str:
        """The node's name by its topology, as far as it is told."""
        return ", ".join((self.node_topology or _Topology()).match_labels.values()) or "some node"


class _NodeDriver(Object, frozen=True, kw_only=True):
    name: str


class _NodeDrivers(Object, frozen=True, kw_only=True):
    drivers: tuple[_NodeDriver, ...] | None = None


class CsiNode(Object, frozen=True, kw_only=True):
    """Which drivers a node's kubelet knows."""

    metadata: Metadata
    spec: _NodeDrivers = _NodeDrivers()


class Seen(Object, frozen=True, kw_only=True):
    """All that was asked for."""

    claims: tuple[Claim, ...] = ()
    volumes: tuple[Volume, ...] = ()
    classes: tuple[StorageClass, ...] = ()
    pods: tuple[Pod, ...] = ()
    events: tuple[Event, ...] = ()
    capacities: tuple[Capacity, ...] = ()
    nodes: tuple[CsiNode, ...] = ()
    drivers: tuple[Pod, ...] = ()
    """The pods of the node plugin."""


def items(text: bytes, kind: type[Any], what: str) -> tuple[Any, ...]:
    """The objects of a list as kubectl prints it. Raises `InvalidInput` for anything else."""
    try:
        found = msgspec.json.decode(text)
        return tuple(msgspec.convert(one, type=kind) for one in found["items"])
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError) as error:
        raise InvalidInput(what, f"kubectl printed something else than a list ({error})") from error


_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}


def quantity_bytes(text: str) -> int:
    """Bytes of a Kubernetes quantity, rounded up; 0 for one that isn't understood."""
    number, unit = text.rstrip("KMGTPEkmi"), text[len(text.rstrip("KMGTPEkmi")) :]
    factor = _UNITS.get(unit) or _DECIMAL.get(unit)
    try:
        return -int(-float(number) * factor // 1) if factor is not None else 0
    except ValueError:
        return 0
