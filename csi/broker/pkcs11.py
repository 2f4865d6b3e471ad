"""A wrapping key in a token that speaks PKCS#11: an HSM, or a KMS by its vendor's module. The key never leaves the token.

A token is talked to for the moment of one wrapping or unwrapping only: nothing stays logged in.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, exceptions
from pkcs11.types import DecryptMixin, EncryptMixin

from csi.core.errors import Refused, SealedLocalError, Unavailable
from csi.core.secret import Secret

_IV_BYTES, _TAG_BITS = 12, 128
_FOR = b"sealed-local/broker/master-key/v1"
# The token decides about attempts: after a wrong PIN nothing is tried again, for three of them lock many a token.
_WORDS: tuple[tuple[type[exceptions.PKCS11Error], str], ...] = (
    (exceptions.PinIncorrect, "it refuses the PIN. It was tried once; several wrong ones lock a token"),
    (exceptions.PinLenRange, "it refuses the PIN: no PIN of it has this length"),
    (exceptions.PinLocked, "its PIN is locked after too many wrong ones; its security officer can set another"),
    (exceptions.PinExpired, "its PIN has expired"),
    (exceptions.UserPinNotInitialized, "it has no user PIN yet"),
    (exceptions.MultipleTokensReturned, "several tokens have this label"),
    (exceptions.EncryptedDataInvalid, "the wrapped master key does not decrypt: it was wrapped by another key, or altered"),
)  # fmt: skip
_GONE = (exceptions.NoSuchToken, exceptions.TokenNotPresent, exceptions.DeviceRemoved)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """An AES key of a token, found by its label. The token must allow it to encrypt and to decrypt by AES-GCM."""

    module: Path
    token: str
    key: str
    pin: Secret

    def wrap(self, secret: Secret) -> bytes:
        """Encrypt in the token. Raises `Unavailable` where the token is not there, `Refused` where it says no."""
        iv = os.urandom(_IV_BYTES)
        with self._found() as key:
            if not isinstance(key, EncryptMixin):
                raise self._forbidden("CKA_ENCRYPT")
            wrapped = key.encrypt(secret.reveal(), mechanism=Mechanism.AES_GCM, mechanism_param=_parameters(iv))
        # Bytes go in, so bytes come out; iterators are for iterators.
        return iv + cast("bytes", wrapped)

    def unwrap(self, wrapped: bytes) -> Secret:
        """The inverse; raises the same, and `Refused` for what this key did not wrap."""
        iv, encrypted = wrapped[:_IV_BYTES], wrapped[_IV_BYTES:]
        with self._found() as key:
            if not isinstance(key, DecryptMixin):
                raise self._forbidden("CKA_DECRYPT")
            found = key.decrypt(encrypted, mechanism=Mechanism.AES_GCM, mechanism_param=_parameters(iv))
        return Secret(cast("bytes", found))

    def __str__(self) -> str:
        return f"key {self.key!r} of token {self.token!r}"

    @contextmanager
    def _found(self) -> Iterator[pkcs11.SecretKey]:
        try:
            library = pkcs11.lib(os.fspath(self.module))
        except exceptions.PKCS11Error as error:
            raise Unavailable(f"the PKCS#11 module {self.module} can't be loaded: {error}") from error
        try:
            token = library.get_token(token_label=self.token)
            with token.open(user_pin=self.pin.reveal().decode()) as session:
                yield self._only(session)
        except exceptions.PKCS11Error as error:
            raise self._named(error) from error
        finally:
            # A module looks for tokens when it is initialised: one that comes later is found by the next attempt.
            library.finalize()

    def _only(self, session: pkcs11.Session) -> pkcs11.SecretKey:
        wanted = {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.LABEL: self.key,
        }
        # All of them: a search that is left half done is ended by the library after the session, which is an error.
        found = [key for key in session.get_objects(wanted) if isinstance(key, pkcs11.SecretKey)]
        if len(found) != 1:
            many = "holds several AES keys" if found else "holds no AES key"
            raise Refused(f"{self}: the token {many} of this label that this PIN may use")
        return found[0]

    def _named(self, error: exceptions.PKCS11Error) -> SealedLocalError:
        if isinstance(error, _GONE):
            return Unavailable(f"PKCS#11 token {self.token!r} is not there (module {self.module})")
        for kind, words in _WORDS:
            if isinstance(error, kind):
                return Refused(f"{self}: {words}")
        # Also what the token says of a mechanism that it lacks, and SoftHSM of a tag that does not verify.
        return Refused(
            f"{self} can't wrap or unwrap the master key ({type(error).__name__}: {error}): the token lacks AES-GCM, or "
            "the wrapped key was altered, or another key of the same label wrapped it"
        )

    def _forbidden(self, attribute: str) -> Refused:
        return Refused(f"{self} is not allowed to wrap the master key: it lacks {attribute}")


def _parameters(iv: bytes) -> pkcs11.GCMParams:
    return pkcs11.GCMParams(iv, aad=_FOR, tag_bits=_TAG_BITS)
