"""Pods that use a direct or sealed volume without a RuntimeClass that honours it. Pure."""

import re
from collections.abc import Iterator, Mapping

from csi.cluster.objects import RuntimeClass, Seen, about
from csi.cluster.plan.actions import Tell
from csi.core.kubernetes import Claim, Pod

REASON = "RuntimeClassNeeded"
_TRUE = ("1", "t", "true")
"""As the node plugin reads it."""


def warnings(seen: Seen, driver: str, handlers: re.Pattern[str]) -> Iterator[Tell]:
    """An event for each pod and claim. `handlers` matches the names of handlers that are Kata's."""
    runtimes = {one.metadata.name: one for one in seen.runtimes}
    kinds = _Kinds(seen, driver)
    for pod in seen.pods:
        if pod.metadata.deletion_timestamp is not None or pod.status.phase in ("Succeeded", "Failed"):
            continue
        lacks = _lacks(pod, runtimes, handlers)
        if lacks is None:
            continue
        for name in sorted(pod.claims):
            kind = kinds.of(pod.metadata.namespace, name)
            if kind:
                yield Tell(
                    subject=about("Pod", "v1", pod.metadata),
                    reason=REASON,
                    message=f"claim {name} is {kind}, and {lacks}. {_known(seen, handlers)}",
                )


def _lacks(pod: Pod, runtimes: Mapping[str, RuntimeClass], handlers: re.Pattern[str]) -> str | None:
    """What is wrong with the pod's runtime; None when it honours such volumes."""
    name = pod.spec.runtime_class_name
    if not name:
        return "this pod has no runtimeClassName"
    found = runtimes.get(name)
    if found is None:
        return f"this pod's RuntimeClass {name} isn't there"
    if handlers.fullmatch(found.handler) is None:
        return f"this pod's RuntimeClass {name} has the handler {found.handler}, which isn't Kata's"
    return None


class _Kinds:
    """What claims are, found by name: there may be many thousands of pods, claims and volumes."""

    def __init__(self, seen: Seen, driver: str) -> None:
        self._driver = driver
        self._claims = {(one.metadata.namespace, one.metadata.name): one for one in seen.claims}
        self._volumes = {one.metadata.name: one for one in seen.volumes}
        self._classes = {one.metadata.name: one for one in seen.classes}

    def of(self, namespace: str, name: str) -> str:
        """Words for a direct or sealed claim of the driver; empty for any other."""
        claim = self._claims.get((namespace, name))
        return _kind(self._parameters(claim)) if claim is not None else ""

    def _parameters(self, claim: Claim) -> Mapping[str, str]:
        """Of the volume, where there is one: a class may have been made anew since."""
        bound = self._volumes.get(claim.spec.volume_name)
        if bound is not None:
            return bound.spec.csi.volume_attributes if bound.spec.csi.driver == self._driver else {}
        found = self._classes.get(claim.spec.storage_class_name or "")
        return found.parameters if found is not None and found.provisioner == self._driver else {}


def _kind(parameters: Mapping[str, str]) -> str:
    if parameters.get("direct", "").lower() in _TRUE:
        return "a direct volume: a Kata guest mounts it, and elsewhere every write to it fails"
    if is_sealed(parameters):
        return "a sealed volume: only an attested Kata guest can open it"
    return ""


def is_sealed(parameters: Mapping[str, str]) -> bool:
    """Whether a class or a volume's attributes say that the guest encrypts."""
    return parameters.get("sealed", "none") not in ("", "none")


def _known(seen: Seen, handlers: re.Pattern[str]) -> str:
    names = sorted(one.metadata.name for one in seen.runtimes if handlers.fullmatch(one.handler))
    if not names:
        return "This cluster has no RuntimeClass of Kata; install Kata first"
    return f"Make the pod anew with one of these RuntimeClasses: {', '.join(names)}"
