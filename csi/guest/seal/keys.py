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
SHARE_BYTES: Final = 32
_VOLUME_KEY_BYTES: Final = 64


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


def volume_key(mine: bytes, brokers: Secret, volume_id: str, key_version: int) -> Secret:
    """The key of a new volume's data, from random bytes of this guest and of the broker: nobody knows it as long as one of
    the two generators is good. Neither share is kept anywhere. Raises `InvalidInput` for a share that is too short.
    """
    if len(brokers.reveal()) != SHARE_BYTES or len(mine) < _VOLUME_KEY_BYTES:
        raise InvalidInput("share", f"{len(brokers.reveal())} bytes of the broker and {len(mine)} of the guest")
    shares, info = framed(mine, brokers.reveal()), info_of("volume-key", volume_id, key_version)
    return Secret(HKDF(algorithm=SHA256(), length=_VOLUME_KEY_BYTES, salt=SALT, info=info).derive(shares))


def info_of(purpose: str, volume_id: str, key_version: int) -> bytes:
    """The HKDF info of one key."""
    return framed(purpose.encode(), volume_id.encode(), key_version.to_bytes(4, "big"))
