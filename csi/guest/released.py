"""What the broker lets this guest have of a volume. A call asks once: each release is a line of the broker's audit log."""

from dataclasses import dataclass

from csi.core.sealed import Profile
from csi.guest.seal import keys as volume_keys
from csi.guest.seal.keys import VolumeKeys
from csi.kbs.claim_name import UNNAMED, ClaimName
from csi.kbs.register import Register, VolumeRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The register's record of a volume, and the keys made from its secret."""

    record: VolumeRecord
    keys: VolumeKeys

    @property
    def volume_id(self) -> str:
        """The volume's id, as the broker confirmed it."""
        return self.record.volume_id


def ask(register: Register, volume_id: str, profile: Profile, used_as: ClaimName = UNNAMED) -> Released:
    """Ask the broker. Raises what `Register.open` raises."""
    record, secret = register.open(volume_id, profile, used_as)
    return Released(record=record, keys=volume_keys.derive(secret, volume_id, record.key_version))
