"""By what a change by other hands is noticed: a MAC on every volume's row, a signature on every entry of the audit log.

The MAC's key comes from the master key; the signature's is `audit.key`. Whoever can write the file and has neither can't
make a row or an entry that counts.
"""

import hmac
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from csi.broker.vault import Vault
from csi.core.errors import InvalidInput, Tampered

_HEAD = b"sealed-local/audit-head/v1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A volume's row as it is stored."""

    volume_id: str
    revision: int
    record: str
    wrapped_secret: bytes | None
    owner: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seals:
    """Makes and checks both."""

    vault: Vault
    signer: Ed25519PrivateKey

    def of_row(self, row: Row) -> bytes:
        """The MAC over everything in a row."""
        secret = b"-" if row.wrapped_secret is None else b"+" + row.wrapped_secret
        owner = b"-" if row.owner is None else b"+" + row.owner.encode()
        parts = (row.volume_id.encode(), str(row.revision).encode(), row.record.encode(), secret, owner)
        return self.vault.mac(*parts, purpose="volume row")

    def check_row(self, row: Row, mac: object) -> None:
        """Raise `Tampered` unless this broker wrote the row."""
        if not isinstance(mac, bytes) or not hmac.compare_digest(mac, self.of_row(row)):
            raise tampered(row.volume_id, "it does not verify")

    def of_head(self, digest: str) -> bytes:
        """The signature over an entry's digest, and so over everything before it."""
        return self.signer.sign(_HEAD + digest.encode())

    def check_head(self, seq: int, digest: str, signature: bytes) -> None:
        """Raise `Tampered` unless this broker's key signed it."""
        try:
            self.signer.public_key().verify(signature, _HEAD + digest.encode())
        except InvalidSignature as error:
            raise Tampered(f"audit entry {seq}: it is not signed by this broker's audit.key") from error


def tampered(volume_id: str, found: str) -> Tampered:
    """The error for a row that was changed by other hands."""
    return Tampered(
        f"the stored record of volume {volume_id} was changed by something else than the broker: {found}. Nothing is "
        "released by it; look into `audit --verify`, and restore a backup: sealed-local broker restore"
    )


def new_signer() -> Ed25519PrivateKey:
    """A key for `audit.key`."""
    return Ed25519PrivateKey.generate()


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """The key as text for a file of mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public key as text, to be kept elsewhere."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def parse_signer(text: str, field: str) -> Ed25519PrivateKey:
    """The inverse of `private_pem`; raises `InvalidInput` without showing the text."""
    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError):
        raise InvalidInput(field, "not an unencrypted private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInput(field, "not an Ed25519 key")
    return key
