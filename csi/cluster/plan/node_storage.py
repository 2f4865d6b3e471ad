"""NodeLocalStorage objects: the specs that the NodeLocalStorageInitConfig means, the statuses that the pages tell. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from csi.cluster.objects import (
    NODE_STORAGE,
    InitConfig,
    Node,
    NodesConfig,
    NodeStorage,
    Seen,
    Selector,
    StorageBlocks,
    about,
    as_text,
)
from csi.cluster.plan.actions import RemoveNodeStorage, ReportNodeStorage, Tell, WriteNodeStorage
from csi.core.local_storage import Condition, Page

KIND = "NodeLocalStorage"


def actions(
    seen: Seen, init_config: str, now: str, *, heartbeat_is_due: bool
) -> Iterator[WriteNodeStorage | ReportNodeStorage | RemoveNodeStorage | Tell]:
    """What brings the objects to what the nodes are. `now` is RFC 3339.

    A status that says the same is written again only when its heartbeat is due, so that a dead helper is seen.
    """
    if seen.node_storages is None:
        return
    config = next((one for one in seen.init_configs if one.metadata.name == init_config), None)
    before = {one.metadata.name: one for one in seen.node_storages}
    for node in seen.nodes:
        known = before.get(node.metadata.name)
        yield from _spec(seen, node, known, config)
        if known is not None:
            yield from _status(seen, known, now, heartbeat_is_due=heartbeat_is_due)
    names = {node.metadata.name for node in seen.nodes}
    for one in seen.node_storages:
        # An empty list of nodes is no proof that there is none.
        if names and one.metadata.name not in names:
            yield RemoveNodeStorage(metadata=one.metadata)


def _spec(seen: Seen, node: Node, before: NodeStorage | None, config: InitConfig | None) -> Iterator[WriteNodeStorage]:
    name = node.metadata.name
    if before is None and not any(page.node == name for page in seen.pages):
        return
    spec = spec_of(name, node.metadata.labels, config, before)
    if before is None or as_text(before.spec) != as_text(spec):
        yield WriteNodeStorage(name=name, spec=spec, before=before.metadata if before is not None else None)


def _status(seen: Seen, before: NodeStorage, now: str, *, heartbeat_is_due: bool) -> Iterator[ReportNodeStorage | Tell]:
    name = before.metadata.name
    page = next((one for one in seen.pages if one.node == name), None)
    silent = next((one for one in seen.silent if one.node == name), None)
    if page is not None:
        yield from _reported(before, status_of(page, before, now), heartbeat_is_due=heartbeat_is_due)
        yield from _not_there(before, page)
    elif silent is not None:
        yield from _reported(before, _silent(before, silent.why, now), heartbeat_is_due=False)


def spec_of(name: str, labels: Mapping[str, str], config: InitConfig | None, before: NodeStorage | None) -> Any:
    """A node's spec: the three blocks of the last part of the configuration that means it, else the general ones.

    Without a configuration a spec that is there stays as somebody wrote it.
    """
    if config is None:
        return before.spec if before is not None else {"nodeName": name}
    blocks: list[StorageBlocks] = [config.spec.global_config]
    blocks += [one for one in config.spec.nodes_config if selects(one, labels)]
    chosen: dict[str, Any] = {"nodeName": name}
    for key in ("spdkConfig", "listConfig", "resourceToBeInited"):
        said = [value for one in blocks if (value := msgspec.to_builtins(one).get(key)) is not None]
        if said:
            chosen[key] = said[-1]
    return chosen


def selects(config: NodesConfig, labels: Mapping[str, str]) -> bool:
    """Whether a part of the configuration means a node with these labels. An unknown operator means none."""
    selector = config.selector
    if selector is None:
        return False
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and _expressions(
        selector, labels
    )


def _expressions(selector: Selector, labels: Mapping[str, str]) -> bool:
    for one in selector.match_expressions:
        holds = {
            "In": labels.get(one.key) in one.values,
            "NotIn": labels.get(one.key) not in one.values,
            "Exists": one.key in labels,
            "DoesNotExist": one.key not in labels,
        }
        if not holds.get(one.operator, False):
            return False
    return True


def status_of(page: Page, before: NodeStorage, now: str) -> Any:
    """The status that a page tells."""
    worst = _worst(page)
    groups = [msgspec.to_builtins(group) for group in page.groups]
    state = {
        "type": str(worst),
        "status": "True",
        "reason": "Reported",
        "message": "" if page.complete else "a volume group can't be looked into; see the driver's log on the node",
    }
    return {
        "nodeStorageInfo": {
            "deviceInfo": [msgspec.to_builtins(device) for device in page.devices],
            "volumeGroups": groups,
            "phase": "Running",
            "state": _dated(state, before, now),
        },
        "filteredStorageInfo": {
            "volumeGroups": [group.name for group in page.groups],
            "updateStatusInfo": {"lastUpdateTime": now, "updateStatus": "accepted"},
        },
    }


def _worst(page: Page) -> Condition:
    conditions = {group.condition for group in page.groups}
    if Condition.FAULT in conditions or not page.complete:
        return Condition.FAULT
    # Full is the node only when no group takes anything more.
    return Condition.FULL if conditions == {Condition.FULL} else Condition.READY


def _silent(before: NodeStorage, why: str, now: str) -> Any:
    """The last that is known, with the heartbeat of that moment."""
    info = dict(before.status.get("nodeStorageInfo", {}))
    old = dict(info.get("state", {}))
    state = {"type": old.get("type", str(Condition.FAULT)), "status": "Unknown", "reason": "NoAnswer", "message": why}
    dated = _dated(state, before, now) | {"lastHeartbeatTime": old.get("lastHeartbeatTime", now)}
    return {**before.status, "nodeStorageInfo": {"phase": "Running", **info, "state": dated}}


def _dated(state: dict[str, Any], before: NodeStorage, now: str) -> dict[str, Any]:
    old = before.status.get("nodeStorageInfo", {}).get("state", {})
    same = (old.get("type"), old.get("status")) == (state["type"], state["status"])
    return {
        **state,
        "lastHeartbeatTime": now,
        "lastTransitionTime": old.get("lastTransitionTime", now) if same else now,
    }


def _reported(before: NodeStorage, status: Any, *, heartbeat_is_due: bool) -> Iterator[ReportNodeStorage]:
    if heartbeat_is_due or as_text(_undated(before.status)) != as_text(_undated(status)):
        yield ReportNodeStorage(name=before.metadata.name, status=status)


def _undated(value: Any) -> Any:
    """Without the moments that change at each look."""
    if isinstance(value, Mapping):
        return {
            key: _undated(inner) for key, inner in value.items() if key not in ("lastHeartbeatTime", "lastUpdateTime")
        }
    return [_undated(one) for one in value] if isinstance(value, list | tuple) else value


def _not_there(before: NodeStorage, page: Page) -> Iterator[Tell]:
    """What a configuration of open-local asks a node to make, and the node's own file doesn't name."""
    asked = before.spec.get("resourceToBeInited", {})
    here = {group.name for group in page.groups}
    for group in asked.get("vgs", ()):
        name, devices = group.get("name", ""), ", ".join(group.get("devices", ()))
        if name and name not in here:
            yield Tell(
                subject=about(KIND, NODE_STORAGE, before.metadata),
                reason="GroupNotThere",
                message=(
                    f"the configuration asks for volume group {name} on {devices or 'no device'}, and node {page.node} has "
                    "none that its driver may use. A disk is given to the driver in the node's own configuration alone: "
                    f"nodePools[].config.pools: [{{name: {name}, vgs: [{name}], devices: [{devices}]}}]"
                ),
            )
