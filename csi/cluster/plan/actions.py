"""What the helper does to the cluster: a closed set. Each is safe to be repeated."""

from dataclasses import dataclass
from typing import Any

from csi.cluster.objects import Subject
from csi.core.kubernetes import Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """A warning event about an object. The same one is told once as long as Kubernetes keeps it."""

    subject: Subject
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteNodeStorage:
    """Make a NodeLocalStorage, or give it this spec. `before` is the object as it is, None when there is none."""

    name: str
    spec: Any
    before: Metadata | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportNodeStorage:
    """Give a NodeLocalStorage this status."""

    name: str
    status: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveNodeStorage:
    """Its node has gone."""

    metadata: Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseClaim:
    """Delete a claim whose volume lay on a node that is gone for good."""

    metadata: Metadata
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseVolume:
    """Delete a PersistentVolume that lay there, as its node's provisioner, whose finalizer it carries, is gone, too."""

    metadata: Metadata
    why: str


Action = Tell | WriteNodeStorage | ReportNodeStorage | RemoveNodeStorage | ReleaseClaim | ReleaseVolume
