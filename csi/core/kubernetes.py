"""Objects of Kubernetes, as far as more than one program reads them. Members that aren't read are ignored. Pure.

Shapes: the Kubernetes API, v1 and storage.k8s.io/v1.
"""

from collections.abc import Mapping
from typing import Any

import msgspec


class Object(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """Base of all: JSON has camel case."""


class Reference(Object, frozen=True, kw_only=True):
    """Another object; which members it has depends on who refers."""

    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""


class Metadata(Object, frozen=True, kw_only=True):
    """Name and life of an object."""

    name: str
    namespace: str = ""
    uid: str = ""
    """Differs from that of every other object, of one of the same name before it, too."""
    resource_version: str = ""
    labels: Mapping[str, str] = {}
    finalizers: tuple[str, ...] = ()
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


class VolumeSource(Object, frozen=True, kw_only=True):
    """Whose volume it is, and what the driver said of it when it made it."""

    driver: str = ""
    volume_handle: str = ""
    volume_attributes: Mapping[str, str] = {}


class Requirement(Object, frozen=True, kw_only=True):
    """What a label of a node must be."""

    key: str
    operator: str = ""
    values: tuple[str, ...] = ()


class NodeTerm(Object, frozen=True, kw_only=True):
    """Requirements that a node fulfils together."""

    match_expressions: tuple[Requirement, ...] = ()


class NodeTerms(Object, frozen=True, kw_only=True):
    """A node fulfils any of these."""

    node_selector_terms: tuple[NodeTerm, ...] = ()


class NodeAffinity(Object, frozen=True, kw_only=True):
    """Which nodes reach a volume."""

    required: NodeTerms = NodeTerms()


class VolumeSpec(Object, frozen=True, kw_only=True):
    """What a PersistentVolume is."""

    claim_ref: Reference = Reference()
    csi: VolumeSource = VolumeSource()
    storage_class_name: str = ""
    persistent_volume_reclaim_policy: str = ""
    node_affinity: NodeAffinity = NodeAffinity()


class Volume(Object, frozen=True, kw_only=True):
    """A PersistentVolume."""

    metadata: Metadata
    spec: VolumeSpec = VolumeSpec()
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
    runtime_class_name: str = ""


class _Condition(Object, frozen=True, kw_only=True):
    type: str
    status: str
    message: str = ""


class _PodStatus(Object, frozen=True, kw_only=True):
    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
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
