"""The report of sealed volumes by which a tenant sees what to retire or shred at the broker. Pure.

The cluster has no say at the broker, so all that it can do is to remember: a PersistentVolume that is deleted leaves no
trace in Kubernetes. Each sealed volume is written down while it is there, so that one which goes while no helper runs is
missed, too.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from csi.cluster.objects import Seen
from csi.cluster.plan.runtime_class import is_sealed
from csi.core.kubernetes import Volume

MOST_DELETED: Final = 2000
"""So many deleted volumes are kept, the newest: a ConfigMap holds a MiB."""


class Entry(msgspec.Struct, rename="camel", frozen=True, kw_only=True, omit_defaults=True):
    """A volume, whose id is the entry's name. Moments are RFC 3339; empty as long as it isn't so."""

    namespace: str
    claim: str
    storage_class: str = ""
    profile: str
    claim_deleted: str = ""
    """When the helper first saw that its claim was gone: the tenant can retire the secret."""
    volume_deleted: str = ""
    """When it first saw that the volume was gone: the tenant can shred it."""


def renewed(before: Mapping[str, str], seen: Seen, driver: str, now: str) -> dict[str, str]:
    """The whole report after another look. An entry that can't be read, as somebody wrote into it, stays as it is."""
    there = {one.spec.csi.volume_handle: one for one in seen.volumes if _is_ours(one, driver)}
    claims = {one.metadata.uid for one in seen.claims}
    entries = {name: entry for name, text in before.items() if (entry := _read(text)) is not None}
    odd = {name: text for name, text in before.items() if name not in entries and name not in there}
    for name, volume in there.items():
        entries[name] = _of(volume, claims, entries.get(name), now)
    for name, entry in entries.items():
        if name not in there and not entry.volume_deleted:
            gone = {"claim_deleted": entry.claim_deleted or now, "volume_deleted": now}
            entries[name] = msgspec.structs.replace(entry, **gone)
    return odd | {name: _written(entry) for name, entry in sorted(_kept(entries).items())}


def _is_ours(volume: Volume, driver: str) -> bool:
    return volume.spec.csi.driver == driver and is_sealed(volume.spec.csi.volume_attributes)


def _of(volume: Volume, claims: set[str], before: Entry | None, now: str) -> Entry:
    claim = volume.spec.claim_ref
    gone = bool(claim.uid) and claim.uid not in claims
    return Entry(
        namespace=claim.namespace,
        claim=claim.name,
        storage_class=volume.spec.storage_class_name,
        profile=volume.spec.csi.volume_attributes["sealed"],
        claim_deleted=((before.claim_deleted if before is not None else "") or now) if gone else "",
    )


def _kept(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    deleted = sorted(
        (name for name in entries if entries[name].volume_deleted), key=lambda n: entries[n].volume_deleted
    )
    too_old = set(deleted[:-MOST_DELETED]) if len(deleted) > MOST_DELETED else set()
    return {name: entry for name, entry in entries.items() if name not in too_old}


def _read(text: str) -> Entry | None:
    try:
        return msgspec.json.decode(text, type=Entry)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def _written(entry: Entry) -> str:
    return msgspec.json.encode(entry).decode()
