"""Carries out the helper's actions at the API server. Each is safe to be repeated; a conflict is left to the next round."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, assert_never

import msgspec

from csi.cluster.api.client import Api, ApiRefused
from csi.cluster.objects import NODE_STORAGE, ConfigMap
from csi.cluster.plan.actions import (
    Action,
    ReleaseClaim,
    ReleaseVolume,
    RemoveNodeStorage,
    ReportNodeStorage,
    Tell,
    WriteNodeStorage,
)
from csi.cluster.plan.node_storage import KIND

_log = logging.getLogger(__name__)

_COMPONENT: Final = "sealed-local-cluster"
_STORAGES: Final = f"/apis/{NODE_STORAGE}/nodelocalstorages"
_AGAIN_SECONDS: Final = 600.0
"""How soon an event that was told is told again. Kubernetes keeps events for an hour."""
_REMEMBERED: Final = 5000
_PROVISIONER: Final = "external-provisioner.volume.kubernetes.io/finalizer"


class Effects:
    """`clock` counts seconds, `today` tells the time of day as RFC 3339."""

    def __init__(self, api: Api, clock: Callable[[], float], today: Callable[[], str]) -> None:
        self._api = api
        self._clock = clock
        self._today = today
        self._told: OrderedDict[str, float] = OrderedDict()

    def apply(self, action: Action) -> None:
        """Raises what `Api` does, but for conflicts."""
        try:
            self._apply(action)
        except ApiRefused as error:
            if not error.is_conflict:
                raise
            _log.info("somebody was faster", extra={"error": str(error)})

    def _apply(self, action: Action) -> None:
        match action:
            case Tell():
                self._tell(action)
            case WriteNodeStorage(before=None):
                body = {"metadata": {"name": action.name}, "spec": action.spec}
                self._api.create(_STORAGES, {"apiVersion": NODE_STORAGE, "kind": KIND, **body})
            case WriteNodeStorage():
                self._set(f"{_STORAGES}/{action.name}", "/spec", action.spec)
            case ReportNodeStorage():
                self._set(f"{_STORAGES}/{action.name}/status", "/status", action.status)
            case RemoveNodeStorage():
                self._api.delete(f"{_STORAGES}/{action.metadata.name}", action.metadata.uid)
            case ReleaseClaim():
                self._release_claim(action)
            case ReleaseVolume():
                self._release_volume(action)
            case _:
                assert_never(action)

    def _set(self, path: str, member: str, value: Any) -> None:
        # `add` makes the member or takes the place of what is there.
        self._api.patch(path, [{"op": "add", "path": member, "value": value}])

    def _release_claim(self, action: ReleaseClaim) -> None:
        claim = action.metadata
        _log.warning("claim released", extra={"claim": f"{claim.namespace}/{claim.name}", "why": action.why})
        self._api.delete(f"/api/v1/namespaces/{claim.namespace}/persistentvolumeclaims/{claim.name}", claim.uid)

    def _release_volume(self, action: ReleaseVolume) -> None:
        volume = action.metadata
        path = f"/api/v1/persistentvolumes/{volume.name}"
        _log.warning("volume released", extra={"volume": volume.name, "why": action.why})
        if volume.deletion_timestamp is None:
            self._api.delete(path, volume.uid)
        if _PROVISIONER in volume.finalizers:
            kept = [one for one in volume.finalizers if one != _PROVISIONER]
            tests = [
                {"op": "test", "path": "/metadata/uid", "value": volume.uid},
                {"op": "test", "path": "/metadata/finalizers", "value": list(volume.finalizers)},
            ]
            self._api.patch(path, [*tests, {"op": "replace", "path": "/metadata/finalizers", "value": kept}])

    def _tell(self, action: Tell) -> None:
        about = action.subject.reference
        words = "\n".join((about.uid, action.reason, action.message))
        name = f"{about.name[:200]}.{hashlib.sha256(words.encode()).hexdigest()[:16]}"
        now = self._clock()
        if now - self._told.get(name, float("-inf")) < _AGAIN_SECONDS:
            return
        namespace = about.namespace or "default"
        # One of that name is this very event: Kubernetes still has it.
        self._create_once(f"/api/v1/namespaces/{namespace}/events", self._event(action, name, namespace))
        self._told[name] = now
        self._told.move_to_end(name)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)

    def _create_once(self, path: str, wanted: Any) -> None:
        try:
            self._api.create(path, wanted)
        except ApiRefused as error:
            if not error.is_conflict:
                raise

    def _event(self, action: Tell, name: str, namespace: str) -> Any:
        about, now = action.subject.reference, self._today()
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": action.subject.version,
                "kind": about.kind,
                "name": about.name,
                "uid": about.uid,
                **({"namespace": about.namespace} if about.namespace else {}),
            },
            "type": "Warning",
            "reason": action.reason,
            # Kubernetes takes no longer one.
            "message": action.message[:1024],
            "source": {"component": _COMPONENT},
            "reportingComponent": _COMPONENT,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


class Report:
    """The ConfigMap with the report of sealed volumes."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._folder = f"/api/v1/namespaces/{namespace}/configmaps"
        self._name = name
        self._last: Mapping[str, str] | None = None

    def renew(self, change: Callable[[Mapping[str, str]], Mapping[str, str]]) -> None:
        """Write what `change` makes of it, when that is something else. Raises what `Api` does, conflicts too.

        The server is asked only when there is something to write: rounds are frequent, and nobody else writes it.
        """
        if self._last is not None and dict(change(self._last)) == self._last:
            return
        before = self._look()
        data = dict(change(before.data if before is not None else {}))
        if before is not None and data == dict(before.data):
            self._last = data
            return
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "data": data}
        if before is None:
            self._api.create(self._folder, {**body, "metadata": {"name": self._name}})
        else:
            tests = [{"op": "test", "path": "/metadata/resourceVersion", "value": before.metadata.resource_version}]
            steps = [*tests, {"op": "add", "path": "/data", "value": data}]
            self._api.patch(f"{self._folder}/{self._name}", steps)
        self._last = data

    def _look(self) -> ConfigMap | None:
        try:
            return msgspec.json.decode(self._api.get(f"{self._folder}/{self._name}"), type=ConfigMap)
        except ApiRefused as error:
            if error.is_not_found:
                return None
            raise
