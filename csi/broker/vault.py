"""Secrets at rest: each is encrypted under the master key and bound to what it is for. Decides nothing about release."""

import base64
import binascii
import hmac
import os
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from csi.core.errors import InvalidInput, NotFound, Refused
from csi.core.framing import framed
from csi.core.secret import Secret

MASTER_KEY_VARIABLE = "SEALED_LOCAL_BROKER_MASTER_KEY"
_KEY_BYTES, _IV_BYTES = 32, 12
_MAC_INFO = b"sealed-local/vault/mac/v1"
_READABLE_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Vault:
    """Wraps and unwraps secrets (AES-256-GCM, a random IV each)."""

    def __init__(self, master: Secret, *, random: Callable[[int], bytes] = os.urandom) -> None:
        self._cipher = AESGCM(master.reveal())
        self._mac_key = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=_MAC_INFO).derive(master.reveal())
        self._random = random

    def wrap(self, secret: Secret, *purpose: str) -> bytes:
        """Encrypt. `purpose` (say: `volume`, its id, its key version) is authenticated and needed again to unwrap."""
        iv = self._random(_IV_BYTES)
        return iv + self._cipher.encrypt(iv, secret.reveal(), _bound(purpose))

    def unwrap(self, wrapped: bytes, *purpose: str) -> Secret:
        """Decrypt; raises `Refused` for another master key, another purpose or altered bytes."""
        try:
            return Secret(self._cipher.decrypt(wrapped[:_IV_BYTES], wrapped[_IV_BYTES:], _bound(purpose)))
        except (InvalidTag, ValueError) as error:
            raise Refused(
                f"the stored secret of {' '.join(purpose)} does not decrypt: the database was altered, or this is not the "
                "master key it was written with"
            ) from error

    def mac(self, *parts: bytes, purpose: str) -> bytes:
        """A MAC (HMAC-SHA256) over parts of one purpose, each with its length."""
        return hmac.digest(self._mac_key, framed(purpose.encode(), *parts), "sha256")


def read_private(path: Path) -> str:
    """The text of a file that nobody else may read; refused when others could have."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            # The mode of the opened file, not of the name, which could be replaced in between.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _READABLE_BY_OTHERS:
                raise Refused(
                    f"{path} has mode {mode:04o}: others can read it. If nobody did: chmod 0600 {path}; "
                    "otherwise replace what it holds"
                )
            return file.read().strip()
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist; `sealed-local broker init` makes it") from error
    except PermissionError as error:
        raise Refused(f"{path} can't be read by this user") from error


def encode_master_key(key: Secret) -> bytes:
    """One line of text for a file or an environment variable."""
    return base64.b64encode(key.reveal()) + b"\n"


def decode_master_key(text: str, field: str) -> Secret:
    """The inverse; raises `InvalidInput` without showing the text."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(field, "not base64") from None
    if len(key) != _KEY_BYTES:
        raise InvalidInput(field, f"{len(key)} bytes instead of {_KEY_BYTES}")
    return Secret(key)


def _bound(purpose: tuple[str, ...]) -> bytes:
    return framed(*(part.encode() for part in ("sealed-local/vault/v1", *purpose)))
