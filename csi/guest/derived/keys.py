"""From a tenant's root resource to the keys of one volume. Pure.

Bound to the volume's id and to the names that the measured policy gives it, never to the whole policy: a changed mount
option must not lose the data.
"""

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from csi.core.errors import Refused
from csi.core.framing import framed
from csi.core.secret import Secret
from csi.guest.seal import keys
from csi.guest.seal.keys import VolumeKeys
from csi.kbs.claim_name import ClaimName

KEY_VERSION: Final = 1
ROOT_BYTES: Final = 32
"""A root has at least so many. That they are random, nobody can see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedKeys:
    """The keys of a volume, and what a new volume key is mixed with beside the guest's own random bytes."""

    keys: VolumeKeys
    share: Secret


def derive(root: Secret, volume_id: str, used_as: ClaimName) -> DerivedKeys:
    """Derive. Raises `Refused` for a root that is too short."""
    length = len(root.reveal())
    if length < ROOT_BYTES:
        raise Refused(
            f"the root resource has {length} bytes; it needs {ROOT_BYTES} random ones or more, nothing is opened"
        )

    def expand(purpose: bytes) -> Secret:
        # A name is never empty, so an empty field says that there is none.
        names = ((used_as.namespace or "").encode(), (used_as.claim or "").encode())
        info = framed(b"root/" + purpose, volume_id.encode(), *names)
        hkdf = HKDF(algorithm=SHA256(), length=keys.SECRET_BYTES, salt=keys.SALT, info=info)
        return Secret(hkdf.derive(root.reveal()))

    return DerivedKeys(
        keys=keys.derive(expand(b"volume-secret"), volume_id, KEY_VERSION), share=expand(b"volume-key-share")
    )
