"""A live dm-crypt mapping as the guest knows it, and the name that a volume's mapping has."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A live mapping."""

    name: str
    table: str
    device: tuple[int, int]

    @property
    def path(self) -> str:
        """Its device node."""
        return f"/dev/mapper/{self.name}"

    @property
    def below(self) -> str | None:
        """Major and minor number (`8:16`) of the device that a one-line crypt table maps; None for any other table."""
        fields = self.table.split()
        is_crypt = "\n" not in self.table and len(fields) > 6 and fields[2] == "crypt"
        return fields[6] if is_crypt else None


def mapping_name(volume_id: str) -> str:
    """The name of a volume's mapping: of fixed length, whatever the id is."""
    return f"sealed-{hashlib.sha256(volume_id.encode()).hexdigest()[:32]}"
