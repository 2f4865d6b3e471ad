"""Further objects that the helper alone reads, and all that it knows at one moment. Pure.

Shapes: v1, node.k8s.io/v1 and open-local's csi.aliyun.com/v1alpha1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from csi.core.kubernetes import Claim, Metadata, Object, Pod, Reference, StorageClass, Volume
from csi.core.local_storage import Page

NODE_STORAGE = "csi.aliyun.com/v1alpha1"
"""apiVersion of NodeLocalStorage and NodeLocalStorageInitConfig."""


class Node(Object, frozen=True, kw_only=True):
    """A node, by its name and labels."""

    metadata: Metadata


class RuntimeClass(Object, frozen=True, kw_only=True):
    """A class of runtimes: which handler of the node's container runtime a pod gets."""

    metadata: Metadata
    handler: str = ""


class ConfigMap(Object, frozen=True, kw_only=True):
    """Texts by name."""

    metadata: Metadata
    data: Mapping[str, str] = {}


class NodeStorage(Object, frozen=True, kw_only=True):
    """A NodeLocalStorage."""

    metadata: Metadata
    spec: Mapping[str, Any] = {}
    status: Mapping[str, Any] = {}


class _Expression(Object, frozen=True, kw_only=True):
    key: str
    operator: str
    values: tuple[str, ...] = ()


class Selector(Object, frozen=True, kw_only=True):
    """Which nodes are meant, by their labels."""

    match_labels: Mapping[str, str] = {}
    match_expressions: tuple[_Expression, ...] = ()


class StorageBlocks(Object, frozen=True, kw_only=True):
    """The three blocks of a NodeLocalStorage's spec; one that is absent says nothing."""

    spdk_config: Mapping[str, Any] | None = None
    list_config: Mapping[str, Any] | None = None
    resource_to_be_inited: Mapping[str, Any] | None = None


class NodesConfig(StorageBlocks, frozen=True, kw_only=True):
    """The blocks of some nodes. Without a selector it means none."""

    selector: Selector | None = None


class _InitSpec(Object, frozen=True, kw_only=True):
    global_config: StorageBlocks = StorageBlocks()
    nodes_config: tuple[NodesConfig, ...] = ()


class InitConfig(Object, frozen=True, kw_only=True):
    """A NodeLocalStorageInitConfig."""

    metadata: Metadata
    spec: _InitSpec = _InitSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """A node plugin whose page could not be had, and why."""

    node: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The cluster and the nodes' pages at one moment, as the helper knows them."""

    pods: tuple[Pod, ...] = ()
    claims: tuple[Claim, ...] = ()
    volumes: tuple[Volume, ...] = ()
    classes: tuple[StorageClass, ...] = ()
    runtimes: tuple[RuntimeClass, ...] = ()
    nodes: tuple[Node, ...] = ()
    node_storages: tuple[NodeStorage, ...] | None = None
    """None where the cluster doesn't know the kind."""
    init_configs: tuple[InitConfig, ...] = ()
    pages: tuple[Page, ...] = ()
    silent: tuple[Silent, ...] = ()


def about(kind: str, version: str, metadata: Metadata) -> "Subject":
    """The object as an event refers to it."""
    reference = Reference(kind=kind, name=metadata.name, namespace=metadata.namespace, uid=metadata.uid)
    return Subject(version=version, reference=reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What an event is about."""

    version: str
    reference: Reference


def as_text(value: Any) -> str:
    """JSON in one fixed order, for comparing and hashing."""
    return msgspec.json.encode(value, order="deterministic").decode()
