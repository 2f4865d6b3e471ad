"""A live dm-crypt mapping as the guest knows it, and the name that a volume's mapping has."""

import hashlib
from dataclasses import dataclass

from csi.core.device_number import DeviceNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A live mapping."""

    name: str
    table: str
    device: DeviceNumber

    @property
    def path(self) -> str:
        """Its device node."""
        return f"/dev/mapper/{self.name}"

    @property
    def below(self) -> DeviceNumber | None:
        """The device that a one-line crypt table maps; None for any other table."""
        fields = self.table.split()
        if "\n" in self.table or len(fields) <= 6 or fields[2] != "crypt":
            return None
        try:
            return DeviceNumber.parse(fields[6])
        except ValueError:
            return None


def mapping_name(volume_id: str) -> str:
    """The name of a volume's mapping: of fixed length, whatever the id is."""
    return f"sealed-{hashlib.sha256(volume_id.encode()).hexdigest()[:32]}"
