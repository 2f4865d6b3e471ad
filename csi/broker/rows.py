"""A volume as the broker keeps it, and the row of the database that says so. Pure; reads and writes nothing."""

from dataclasses import dataclass
from typing import TypeVar

from csi.broker.owner import Owner
from csi.broker.seals import Row
from csi.core.errors import InvalidInput, Tampered
from csi.kbs import strict_json
from csi.kbs.register import VolumeRecord

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVolume:
    """A record, its wrapped secret (None once it was shredded), and whose it is (None: nobody's yet)."""

    record: VolumeRecord
    wrapped_secret: bytes | None
    owner: Owner | None = None


def row_of(stored: StoredVolume) -> Row:
    """The row, as its MAC is made over it."""
    record = stored.record
    return Row(
        volume_id=record.volume_id,
        revision=record.revision,
        record=strict_json.encode(record).decode(),
        wrapped_secret=stored.wrapped_secret,
        owner=None if stored.owner is None else strict_json.encode(stored.owner).decode(),
    )


def stored_of(row: Row) -> StoredVolume:
    """The inverse, of a row whose MAC was checked. Raises `Tampered` for a text of another version."""
    owner = None if row.owner is None else _decode(row.volume_id, row.owner, Owner, "owner")
    record = _decode(row.volume_id, row.record, VolumeRecord, "record")
    return StoredVolume(record=record, wrapped_secret=row.wrapped_secret, owner=owner)


def _decode(volume_id: str, text: str, kind: type[_T], what: str) -> _T:
    try:
        return strict_json.decode(text, kind, what)
    except InvalidInput as error:
        raise Tampered(f"the stored record of volume {volume_id} can't be read: {error}") from error
