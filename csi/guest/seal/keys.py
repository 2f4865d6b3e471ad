"""From one released secret to keys with one purpose each: HKDF-SHA256 (RFC 5869) over length-prefixed fields.

The volume id in the derivation is the attested one, never one read from a disk: a swapped device opens nothing.
"""

import uuid
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from csi.core.errors import InvalidInput
from csi.core.framing import framed
from csi.core.secret import Secret

SALT: Final = b"sealed-local/v1"
SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeKeys:
    """Everything that is derived for one volume and key version."""

    passphrase: Secret
    """Opens keyslot 0; 32 bytes, given to cryptsetup as they are."""
    header_mac: Secret
    state_mac: Secret
    luks_uuid: str


def derive(secret: Secret, volume_id: str, key_version: int) -> VolumeKeys:
    """The keys of a volume. Raises `InvalidInput` for a secret of another length than 32 bytes."""
    if len(secret.reveal()) != SECRET_BYTES:
        raise InvalidInput("secret", f"the broker released {len(secret.reveal())} bytes instead of {SECRET_BYTES}")

    def expand(purpose: str, length: int) -> bytes:
        info = info_of(purpose, volume_id, key_version)
        return HKDF(algorithm=SHA256(), length=length, salt=SALT, info=info).derive(secret.reveal())

    return VolumeKeys(
        passphrase=Secret(expand("luks-passphrase", 32)),
        header_mac=Secret(expand("header-mac", 32)),
        state_mac=Secret(expand("state-mac", 32)),
        luks_uuid=str(uuid.UUID(bytes=expand("luks-uuid", 16), version=4)),
    )


def info_of(purpose: str, volume_id: str, key_version: int) -> bytes:
    """The HKDF info of one key."""
    return framed(purpose.encode(), volume_id.encode(), key_version.to_bytes(4, "big"))
