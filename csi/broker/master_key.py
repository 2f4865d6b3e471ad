"""Where the master key is: in a file as it is, or in that file wrapped by a key of a KMS, or in the environment.

The KMS sees one key of 32 bytes, when a broker starts. Secrets of volumes are wrapped by the master key, here: an open
does not wait for a KMS, and a KMS that is away stops no broker that runs.
"""

import base64
import binascii
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from csi.broker import vault
from csi.core.errors import InvalidInput, Refused
from csi.core.secret import Secret

PIN_VARIABLE = "SEALED_LOCAL_BROKER_KMS_PIN"
_WRAPPED = "wrapped:"


class KeyWrapper(Protocol):
    """A key-encryption key: wraps the master key, and is somewhere else."""

    def wrap(self, secret: Secret) -> bytes:
        """Encrypt; raises `Unavailable` or `Refused`, by name."""

    def unwrap(self, wrapped: bytes) -> Secret:
        """The inverse."""


@dataclass(frozen=True, slots=True)
class MasterKeyFile:
    """The file, and what wraps the key in it; None where it lies there as it is."""

    path: Path
    wrapper: KeyWrapper | None

    def load(self) -> Secret:
        """The key. A file that was written before there was a KMS is read, too."""
        text = vault.read_private(self.path)
        if not text.startswith(_WRAPPED):
            return vault.decode_master_key(text, str(self.path))
        if self.wrapper is None:
            raise Refused(f"{self.path} is wrapped by a KMS, and there is no kms.toml beside it that says by which")
        return checked(self.wrapper.unwrap(_decoded(text.removeprefix(_WRAPPED), str(self.path))), str(self.path))

    def text(self, key: Secret) -> bytes:
        """What the file is to hold. Unwrapped again before it is trusted: one that only encrypts would lose everything."""
        if self.wrapper is None:
            return vault.encode_master_key(key)
        wrapped = self.wrapper.wrap(key)
        if self.wrapper.unwrap(wrapped) != key:
            raise Refused(f"the KMS does not give back the key that it wrapped; {self.path} was not written")
        return _WRAPPED.encode() + base64.b64encode(wrapped) + b"\n"


def checked(key: Secret, field: str) -> Secret:
    """The key; raises `InvalidInput` for one that no broker made."""
    return vault.decode_master_key(vault.encode_master_key(key).decode(), field)


class _Pkcs11(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    module: str
    token: str
    key: str
    pin_file: str | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    pkcs11: _Pkcs11


def load_wrapper(path: Path, environment: Mapping[str, str]) -> KeyWrapper | None:
    """What `kms.toml` says; None where there is none. Raises `InvalidInput` naming the field."""
    try:
        said = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidInput(str(path), str(error)) from error
    if said.version != 1:
        raise InvalidInput(f"{path}: version", f"{said.version}; this program knows 1")
    from csi.broker.pkcs11 import TokenKey  # Its library is not worth its import time to the others.

    chosen = said.pkcs11
    pin = _pin(path, chosen, environment)
    return TokenKey(module=Path(chosen.module), token=chosen.token, key=chosen.key, pin=pin)


def _pin(path: Path, chosen: _Pkcs11, environment: Mapping[str, str]) -> Secret:
    if PIN_VARIABLE in environment:
        return Secret(environment[PIN_VARIABLE].encode())
    if chosen.pin_file is None:
        raise InvalidInput(f"{path}: pkcs11.pin_file", f"missing, and {PIN_VARIABLE} is not set: the token wants a PIN")
    return Secret(vault.read_private(path.parent / chosen.pin_file).encode())


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(field, "not base64") from None
