"""Flattened JSON JWE between a KBS and a guest: ECDH-ES+A256KW or RSA-OAEP-256 to encrypt, the former to decrypt.

Not a general JOSE library. `enc` is always A256GCM, the ephemeral key sits inside the protected header, and neither
`header` nor `aad` exists: CoCo's clients compute the AAD from their own re-serialisation of the header, so its bytes must
be compact JSON in one order (`alg`, `enc`, `epk{crv,kty,x,y}`).
"""

import os
from collections.abc import Callable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from csi.core.errors import InvalidInput
from csi.core.framing import framed
from csi.core.secret import Secret
from csi.kbs import base64url, jwk, strict_json
from csi.kbs.jwk import ECDH_ES_A256KW, EcJwk, Jwk, RsaJwk

_ENC = "A256GCM"
_KEY_BYTES, _IV_BYTES, _TAG_BYTES = 32, 12, 16

Random = Callable[[int], bytes]


class Epk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sender's ephemeral public key; the order of members is part of the format."""

    crv: str
    kty: str
    x: str
    y: str


class _Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    alg: str
    enc: str
    epk: Epk | None = None


class _Jwe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All five are mandatory. An unknown member, `header` and `aad` among them, is refused: it would change the meaning."""

    protected: str
    encrypted_key: str
    iv: str
    ciphertext: str
    tag: str


def encrypt(recipient: Jwk, plaintext: Secret, *, random: Random = os.urandom) -> bytes:
    """The JSON text of a JWE that only the holder of `recipient`'s private key can read."""
    content_key, iv = random(_KEY_BYTES), random(_IV_BYTES)
    header, encrypted_key = _wrap_content_key(recipient, content_key)
    protected = base64url.encode(strict_json.encode(header))
    sealed = AESGCM(content_key).encrypt(iv, plaintext.reveal(), protected.encode("ascii"))
    return strict_json.encode(
        _Jwe(
            protected=protected,
            encrypted_key=base64url.encode(encrypted_key),
            iv=base64url.encode(iv),
            ciphertext=base64url.encode(sealed[:-_TAG_BYTES]),
            tag=base64url.encode(sealed[-_TAG_BYTES:]),
        )
    )


def decrypt(key: ec.EllipticCurvePrivateKey, data: bytes) -> Secret:
    """The plaintext of a JWE made for `key`; raises `InvalidInput` when it is malformed, altered or for another key."""
    jwe = strict_json.decode(data, _Jwe, "JWE")
    header = strict_json.decode(base64url.decode(jwe.protected, "JWE.protected"), _Header, "JWE.protected")
    epk = _checked_epk(header, jwk.from_ec_key(key.public_key()).crv)
    iv = _exactly(_IV_BYTES, jwe.iv, "JWE.iv")
    tag = _exactly(_TAG_BYTES, jwe.tag, "JWE.tag")
    ciphertext = base64url.decode(jwe.ciphertext, "JWE.ciphertext")
    try:
        content_key = aes_key_unwrap(
            key_encryption_key(key.exchange(ec.ECDH(), epk)), base64url.decode(jwe.encrypted_key, "JWE.encrypted_key")
        )
        return Secret(AESGCM(content_key).decrypt(iv, ciphertext + tag, jwe.protected.encode("ascii")))
    except (InvalidUnwrap, InvalidTag, ValueError) as error:
        raise InvalidInput("JWE", "it does not decrypt: it was altered, or made for another key") from error


def key_encryption_key(shared: bytes) -> bytes:
    """The AES-256 key wrapping key of an ECDH result (RFC 7518 section 4.6.2, empty party information)."""
    no_party = b""
    info = framed(ECDH_ES_A256KW.encode("ascii"), no_party, no_party) + (_KEY_BYTES * 8).to_bytes(4, "big")
    return ConcatKDFHash(hashes.SHA256(), _KEY_BYTES, info).derive(shared)


def _wrap_content_key(recipient: Jwk, content_key: bytes) -> tuple[_Header, bytes]:
    jwk.check_algorithm(recipient, "tee-pubkey")
    if isinstance(recipient, RsaJwk):
        encrypted = jwk.encrypt_to_rsa(recipient, content_key, "tee-pubkey")
        return _Header(alg=recipient.alg, enc=_ENC), encrypted
    return _wrap_by_agreement(recipient, content_key)


def _wrap_by_agreement(recipient: EcJwk, content_key: bytes) -> tuple[_Header, bytes]:
    peer = jwk.to_ec_key(recipient.crv, recipient.x, recipient.y, "tee-pubkey")
    ephemeral = ec.generate_private_key(peer.curve)
    x, y = jwk.coordinates(ephemeral.public_key(), recipient.crv)
    header = _Header(alg=recipient.alg, enc=_ENC, epk=Epk(crv=recipient.crv, kty="EC", x=x, y=y))
    return header, aes_key_wrap(key_encryption_key(ephemeral.exchange(ec.ECDH(), peer)), content_key)


def _checked_epk(header: _Header, curve: str) -> ec.EllipticCurvePublicKey:
    if header.alg != ECDH_ES_A256KW:
        raise InvalidInput("JWE.protected.alg", f"{header.alg!r} instead of {ECDH_ES_A256KW}")
    if header.enc != _ENC:
        raise InvalidInput("JWE.protected.enc", f"{header.enc!r} instead of {_ENC}")
    if header.epk is None:
        raise InvalidInput("JWE.protected.epk", "missing; the ephemeral key must be inside the protected header")
    if (header.epk.kty, header.epk.crv) != ("EC", curve):
        raise InvalidInput("JWE.protected.epk", f"{header.epk.kty} {header.epk.crv} instead of EC {curve}")
    return jwk.to_ec_key(header.epk.crv, header.epk.x, header.epk.y, "JWE.protected.epk")


def _exactly(size: int, text: str, field: str) -> bytes:
    value = base64url.decode(text, field)
    if len(value) != size:
        raise InvalidInput(field, f"{len(value)} bytes instead of {size}")
    return value
