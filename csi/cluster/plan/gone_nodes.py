"""Claims and volumes of nodes that are gone for good. Pure.

A node is gone when no Node has its topology value as a label or as its name, and no node plugin answers for it. Only the
operator's word, a time in the settings, makes anything of it, because the data may be on disks that come back.
"""

from collections.abc import Iterator

from csi.cluster.objects import Seen
from csi.cluster.plan import places
from csi.cluster.plan.actions import ReleaseClaim, ReleaseVolume
from csi.core.kubernetes import Claim, Volume

_GIVEN_UP = ("Released", "Failed")
"""Phases in which Kubernetes itself has seen that the claim is gone."""


def gone(seen: Seen, driver: str, topology_key: str) -> frozenset[str]:
    """Topology values on which volumes of the driver lie, and of which no node is left.

    Empty where no Node at all is known: an empty list is no proof.
    """
    if not seen.nodes:
        return frozenset()
    named = {one.metadata.name for one in seen.nodes}
    labelled = {one.metadata.labels.get(topology_key, "") for one in seen.nodes}
    answering = {page.topology for page in seen.pages}
    ours = (one for one in seen.volumes if one.spec.csi.driver == driver)
    used = {value for one in ours for value in places.of(one, topology_key)}
    return frozenset(used - named - labelled - answering)


def releases(
    seen: Seen, driver: str, topology_key: str, lost: frozenset[str]
) -> Iterator[ReleaseClaim | ReleaseVolume]:
    """What is deleted for these values. The volume goes after its claim, and only where its class deletes volumes."""
    for volume in seen.volumes:
        where = places.of(volume, topology_key)
        if volume.spec.csi.driver != driver or not where or not where <= lost:
            continue
        why = f"its data lay on {', '.join(sorted(where))}, a node that is gone"
        claim = _claim(seen, volume)
        if claim is not None:
            # One that is being deleted goes when no pod uses it any more.
            if claim.metadata.deletion_timestamp is None:
                yield ReleaseClaim(metadata=claim.metadata, why=why)
        elif volume.spec.persistent_volume_reclaim_policy == "Delete" and volume.status.phase in _GIVEN_UP:
            yield ReleaseVolume(metadata=volume.metadata, why=why)


def _claim(seen: Seen, volume: Volume) -> Claim | None:
    uid = volume.spec.claim_ref.uid
    return next((one for one in seen.claims if uid and one.metadata.uid == uid), None)
