"""Why a claim is stuck, and what to do: (what the cluster shows) to sentences. Pure.

The order is that of a claim's life: class, driver, room, making, mounting, deletion. What others have said already, in
events, is repeated where a person would have to search for it; what nobody says is worked out here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from csi.core.kubernetes import Claim, Pod, StorageClass, Volume
from csi.core.size import human
from csi.doctor.objects import Event, Seen, quantity_bytes

_STORAGE = "storage"
_NEWEST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found, and what a person can do; without `todo` nothing has to be done."""

    found: str
    todo: str = ""


def of_claim(seen: Seen, namespace: str, name: str, driver: str) -> tuple[Finding, ...]:
    """Everything that keeps the claim from going on; nothing where nobody complains."""
    claim = next((one for one in seen.claims if one.metadata.name == name), None)
    if claim is None:
        return tuple(_of_no_claim(seen, namespace, name))
    if claim.metadata.deletion_timestamp is not None:
        return tuple(_of_a_deletion(seen, claim))
    if claim.status.phase == "Bound":
        return tuple(_of_pods(seen, claim))
    return tuple(_of_a_wait(seen, claim, driver))


def _of_no_claim(seen: Seen, namespace: str, name: str) -> Iterator[Finding]:
    left = [one for one in seen.volumes if (one.spec.claim_ref.namespace, one.spec.claim_ref.name) == (namespace, name)]
    if not left:
        yield Finding(
            found=f"There is no claim {name} in namespace {namespace}, and no volume of one.",
            todo="Look at the name and at --namespace: kubectl get pvc --all-namespaces",
        )
    for volume in left:
        yield from _of_a_volume_that_is_left(seen, volume)


def _of_a_volume_that_is_left(seen: Seen, volume: Volume) -> Iterator[Finding]:
    name = volume.metadata.name
    told = _told(seen, "PersistentVolume", name)
    yield Finding(
        found=f"The claim is gone, and its volume {name} is {volume.status.phase or 'still there'}: it is wiped and "
        "removed, or waits for that.",
        todo=""
        if told
        else "Nothing yet: a wipe takes as long as writing the volume. sealed_local_job_done_bytes shows how far it is",
    )
    yield from told


def _of_a_deletion(seen: Seen, claim: Claim) -> Iterator[Finding]:
    users = [pod.metadata.name for pod in _pods(seen, claim)]
    yield Finding(
        found=f"Claim {claim.metadata.name} is being deleted, and used by {', '.join(users) or 'no pod that is there'}.",
        todo=f"It goes when these end: kubectl delete pod {' '.join(users)}" if users else "Look at its finalizers",
    )


def _of_a_wait(seen: Seen, claim: Claim, driver: str) -> Iterator[Finding]:
    name = claim.spec.storage_class_name
    found = next((one for one in seen.classes if one.metadata.name == name), None)
    if found is None:
        ours = ", ".join(sorted(one.metadata.name for one in seen.classes if one.provisioner == driver)) or "none"
        yield Finding(
            found=f"The claim's class {name or '(none)'} isn't there.",
            todo=f"Classes of {driver}: {ours}. A claim's class can't be changed: make the claim anew",
        )
        return
    if found.provisioner != driver:
        yield Finding(
            found=f"Class {name} is of {found.provisioner}, not of {driver}.",
            todo="Ask that driver, or use a class of this one (--driver-name says which one is meant)",
        )
        return
    yield from _of_the_driver(seen, driver)
    pods = _pods(seen, claim)
    if not pods and found.volume_binding_mode == "WaitForFirstConsumer" and not claim.spec.volume_name:
        yield Finding(
            found=f"Class {name} waits for a pod, and no pod in the namespace uses the claim.",
            todo="Make the pod; its node decides where the volume is made",
        )
    yield from _told(seen, "PersistentVolumeClaim", claim.metadata.name)
    if pods:
        yield from _of_room(seen, claim, found)
        yield from _of_pods(seen, claim)


def _of_the_driver(seen: Seen, driver: str) -> Iterator[Finding]:
    nodes = [node.metadata.name for node in seen.nodes if driver in {one.name for one in node.spec.drivers or ()}]
    if not nodes:
        yield Finding(
            found=f"No node's kubelet knows the driver {driver}.",
            todo="Install it, or look why it doesn't run: docs/install.md, When it doesn't start",
        )
    for pod in seen.drivers:
        if not pod.is_ready:
            where = pod.spec.node_name or "no node yet"
            yield Finding(
                found=f"The driver's pod {pod.metadata.namespace}/{pod.metadata.name} on {where} is not ready.",
                todo=f"kubectl -n {pod.metadata.namespace} logs {pod.metadata.name} -c driver",
            )


def _of_room(seen: Seen, claim: Claim, found: StorageClass) -> Iterator[Finding]:
    name = found.metadata.name
    rooms = [one for one in seen.capacities if one.storage_class_name == name]
    largest = {one.node: quantity_bytes(one.maximum_volume_size or one.capacity or "0") for one in rooms}
    if not any(largest.values()):
        shown = ", ".join(f"{key}: {value}" for key, value in sorted(found.parameters.items())) or "no parameters"
        said = "no node has any room for it" if rooms else "no node has said anything about it"
        yield Finding(
            found=f"Class {name} ({shown}): {said}.",
            todo="Its pool or group may be on no node, or be full. sealed_local_pool_ready and a node's driver log say "
            "which pools there are and what they lack",
        )
        return
    wanted = quantity_bytes(claim.spec.resources.requests.get(_STORAGE, "0"))
    if wanted > max(largest.values()):
        best = ", ".join(f"{node}: {human(size)}" for node, size in sorted(largest.items(), key=lambda one: -one[1]))
        yield Finding(
            found=f"The claim asks for {human(wanted)}, and no node has that in one volume. The largest: {best}.",
            todo="Ask for less, free some room, or give a node's pool another disk",
        )


def _of_pods(seen: Seen, claim: Claim) -> Iterator[Finding]:
    for pod in _pods(seen, claim):
        if pod.is_ready or pod.status.phase == "Succeeded":
            continue
        for condition in pod.status.conditions:
            if condition.type == "PodScheduled" and condition.status == "False":
                yield Finding(found=f"Pod {pod.metadata.name} has no node: {condition.message}")
        yield from _told(seen, "Pod", pod.metadata.name)


def _pods(seen: Seen, claim: Claim) -> list[Pod]:
    return [pod for pod in seen.pods if claim.metadata.name in pod.claims]


def _told(seen: Seen, kind: str, name: str) -> list[Finding]:
    """The newest warnings of an object, each text once."""
    about = [one for one in seen.events if (one.involved_object.kind, one.involved_object.name) == (kind, name)]
    warnings = sorted((one for one in about if one.type == "Warning"), key=lambda one: one.when, reverse=True)
    texts = dict.fromkeys(_sentence(one) for one in warnings if one.reason != "FailedScheduling")
    return [Finding(found=text) for text in [*texts][:_NEWEST]]


def _sentence(event: Event) -> str:
    text = event.message.strip().partition("rpc error: ")
    return f"{event.involved_object.kind} {event.involved_object.name}, {event.reason}: {(text[2] or text[0]).strip()}"
