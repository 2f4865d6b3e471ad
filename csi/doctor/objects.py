"""What the cluster shows, as far as it says why a claim is stuck. Members that aren't read here are ignored. Pure.

Shapes: the Kubernetes API, v1, storage.k8s.io/v1 and events of v1, as `kubectl get -o json` prints them.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from csi.core.errors import InvalidInput


class Object(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """Base of all: JSON has camel case."""


class Reference(Object, frozen=True, kw_only=True):
    """Another object; which members it has depends on who refers."""

    kind: str = ""
    name: str = ""
    namespace: str = ""


class Metadata(Object, frozen=True, kw_only=True):
    """Name and life of an object."""

    name: str
    namespace: str = ""
    deletion_timestamp: str | None = None
    owner_references: tuple[Reference, ...] = ()


class _Requests(Object, frozen=True, kw_only=True):
    requests: Mapping[str, str] = {}


class _ClaimSpec(Object, frozen=True, kw_only=True):
    storage_class_name: str | None = None
    volume_name: str = ""
    resources: _Requests = _Requests()


class _Phase(Object, frozen=True, kw_only=True):
    phase: str = ""
    message: str = ""


class Claim(Object, frozen=True, kw_only=True):
    """A PersistentVolumeClaim."""

    metadata: Metadata
    spec: _ClaimSpec = _ClaimSpec()
    status: _Phase = _Phase()


class _VolumeSource(Object, frozen=True, kw_only=True):
    driver: str = ""


class _VolumeSpec(Object, frozen=True, kw_only=True):
    claim_ref: Reference = Reference()
    csi: _VolumeSource = _VolumeSource()


class Volume(Object, frozen=True, kw_only=True):
    """A PersistentVolume."""

    metadata: Metadata
    spec: _VolumeSpec = _VolumeSpec()
    status: _Phase = _Phase()


class StorageClass(Object, frozen=True, kw_only=True):
    """A class."""

    metadata: Metadata
    provisioner: str
    parameters: Mapping[str, str] = {}
    volume_binding_mode: str = "Immediate"


class _ClaimSource(Object, frozen=True, kw_only=True):
    claim_name: str = ""


class _PodVolume(Object, frozen=True, kw_only=True):
    name: str
    persistent_volume_claim: _ClaimSource | None = None
    ephemeral: Mapping[str, Any] | None = None


class _PodSpec(Object, frozen=True, kw_only=True):
    volumes: tuple[_PodVolume, ...] = ()
    node_name: str = ""


class _Condition(Object, frozen=True, kw_only=True):
    type: str
    status: str
    message: str = ""


class _PodStatus(Object, frozen=True, kw_only=True):
    phase: str = ""
    conditions: tuple[_Condition, ...] = ()


class Pod(Object, frozen=True, kw_only=True):
    """A pod, of a user or of the driver."""

    metadata: Metadata
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()

    @property
    def claims(self) -> frozenset[str]:
        """Names of the claims that it uses; a generic ephemeral volume's claim has the pod's name before the volume's."""
        named = {one.persistent_volume_claim.claim_name for one in self.spec.volumes if one.persistent_volume_claim}
        made = {f"{self.metadata.name}-{one.name}" for one in self.spec.volumes if one.ephemeral is not None}
        return frozenset(named | made)

    @property
    def is_ready(self) -> bool:
        """Whether all its containers are."""
        return any(one.type == "Ready" and one.status == "True" for one in self.status.conditions)


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
