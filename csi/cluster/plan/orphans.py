"""Volumes of nodes that no PersistentVolume means, and PersistentVolumes whose volume is nowhere. Pure.

Nothing is repaired here: data is removed by nobody but the one who knows what it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from csi.cluster.objects import Seen, about
from csi.cluster.plan import places
from csi.cluster.plan.actions import Tell
from csi.core.size import human


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A logical volume of the driver without a PersistentVolume."""

    node: str
    vg: str
    volume_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A PersistentVolume whose node has no such logical volume."""

    volume: str
    volume_id: str
    uid: str
    node: str


Fact = Orphan | Lost


def facts(seen: Seen, driver: str, topology_key: str) -> tuple[Fact, ...]:
    """Both kinds, as one look shows them. A node that said nothing, or couldn't look everywhere, tells of no loss."""
    return (*_orphans(seen, driver), *_lost(seen, driver, topology_key))


def _orphans(seen: Seen, driver: str) -> Iterator[Orphan]:
    wanted = {one.spec.csi.volume_handle for one in seen.volumes if one.spec.csi.driver == driver}
    for page in seen.pages:
        for volume in page.volumes:
            if page.driver == driver and not volume.deleting and volume.id not in wanted:
                yield Orphan(node=page.node, vg=volume.vg, volume_id=volume.id, size_bytes=volume.total)


def _lost(seen: Seen, driver: str, topology_key: str) -> Iterator[Lost]:
    here = {volume.id for page in seen.pages if page.driver == driver for volume in page.volumes}
    complete = {page.topology: page.node for page in seen.pages if page.driver == driver and page.complete}
    for one in seen.volumes:
        handle = one.spec.csi.volume_handle
        if one.spec.csi.driver != driver or handle in here or one.metadata.deletion_timestamp is not None:
            continue
        where = places.of(one, topology_key)
        if where and where <= complete.keys():
            nodes = ", ".join(sorted(complete[value] for value in where))
            yield Lost(volume=one.metadata.name, volume_id=handle, uid=one.metadata.uid, node=nodes)


def told(fact: Fact, seen: Seen) -> Iterator[Tell]:
    """The events for a fact that has settled: about the node, or about the volume and its claim."""
    if isinstance(fact, Orphan):
        yield from _told_of_an_orphan(fact, seen)
    else:
        yield from _told_of_a_loss(fact, seen)


def _told_of_an_orphan(fact: Orphan, seen: Seen) -> Iterator[Tell]:
    node = next((one for one in seen.nodes if one.metadata.name == fact.node), None)
    if node is not None:
        yield Tell(
            subject=about("Node", "v1", node.metadata),
            reason="OrphanedVolume",
            message=(
                f"logical volume {fact.vg}/{fact.volume_id} ({human(fact.size_bytes)}) belongs to no PersistentVolume. "
                "Make one for it to use it again, or to have it wiped and removed: docs/cluster.md"
            ),
        )


def _told_of_a_loss(fact: Lost, seen: Seen) -> Iterator[Tell]:
    volume = next((one for one in seen.volumes if one.metadata.uid == fact.uid), None)
    if volume is None:
        return
    text = (
        f"node {fact.node} has no logical volume {fact.volume_id}: its disk or group is missing there, or somebody has "
        "removed it. Look at pvs and vgs on the node; when the data is gone for good, delete the claim"
    )
    yield Tell(subject=about("PersistentVolume", "v1", volume.metadata), reason="VolumeLost", message=text)
    claim = volume.spec.claim_ref
    found = next((one for one in seen.claims if one.metadata.uid == claim.uid and claim.uid), None)
    if found is not None:
        yield Tell(subject=about("PersistentVolumeClaim", "v1", found.metadata), reason="VolumeLost", message=text)
