"""Public keys as JSON Web Keys, exactly the members that the KBS protocol types know (`tee-pubkey`).

Any other member is dropped before hashing, as the Rust server does when it parses a key into its own type; a client must
therefore send nothing else. Private keys are never written as JWK.
"""

from typing import ClassVar

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from csi.core.errors import InvalidInput
from csi.kbs import base64url
from csi.kbs.strict_json import Word

_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-521": ec.SECP521R1()}
_COORDINATE_BYTES = {"P-256": 32, "P-521": 66}
_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 8192
_MAX_EXPONENT_BITS = 64
"""What OpenSSL takes for moduli of more than 3,072 bits."""
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)

ECDH_ES_A256KW = "ECDH-ES+A256KW"
RSA_OAEP_256 = "RSA-OAEP-256"


class EcJwk(msgspec.Struct, frozen=True, kw_only=True, tag_field="kty", tag="EC"):
    """An elliptic curve key for key agreement."""

    ALGORITHMS: ClassVar = (ECDH_ES_A256KW,)
    crv: Word
    alg: Word
    x: str
    y: str


class RsaJwk(msgspec.Struct, frozen=True, kw_only=True, tag_field="kty", tag="RSA"):
    """An RSA key for key transport."""

    ALGORITHMS: ClassVar = (RSA_OAEP_256,)
    alg: Word
    n: str
    e: str


Jwk = EcJwk | RsaJwk


def from_ec_key(key: ec.EllipticCurvePublicKey) -> EcJwk:
    """The JWK of a P-256 or P-521 public key."""
    name = {"secp256r1": "P-256", "secp521r1": "P-521"}[key.curve.name]
    x, y = coordinates(key, name)
    return EcJwk(crv=name, alg=ECDH_ES_A256KW, x=x, y=y)


def coordinates(key: ec.EllipticCurvePublicKey, curve: str) -> tuple[str, str]:
    """`x` and `y` in base64url, left-padded to the curve's size as RFC 7518 demands."""
    numbers, size = key.public_numbers(), _COORDINATE_BYTES[curve]
    return base64url.encode(numbers.x.to_bytes(size, "big")), base64url.encode(numbers.y.to_bytes(size, "big"))


def to_ec_key(curve: str, x: str, y: str, field: str) -> ec.EllipticCurvePublicKey:
    """The key, checked to be a point on its curve (an invalid point would leak a private key in ECDH)."""
    if curve not in _CURVES:
        raise InvalidInput(f"{field}.crv", f"{curve!r} is not offered; there are: {', '.join(_CURVES)}")
    point = {name: base64url.decode(text, f"{field}.{name}") for name, text in (("x", x), ("y", y))}
    for name, value in point.items():
        if len(value) != _COORDINATE_BYTES[curve]:
            raise InvalidInput(f"{field}.{name}", f"{len(value)} bytes instead of {_COORDINATE_BYTES[curve]}")
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(point["x"], "big"), int.from_bytes(point["y"], "big"), _CURVES[curve]
    )
    try:
        return numbers.public_key()
    except ValueError as error:
        raise InvalidInput(field, f"not a point on {curve}") from error


def encrypt_to_rsa(jwk: RsaJwk, content: bytes, field: str) -> bytes:
    """RSA-OAEP with SHA-256. Keys are refused that are too weak, so large that they only burn time, or of no use to
    OpenSSL, which accepts an even modulus until it has to encrypt to it.
    """
    modulus, exponent = _number(jwk.n, f"{field}.n"), _number(jwk.e, f"{field}.e")
    if not _MIN_RSA_BITS <= modulus.bit_length() <= _MAX_RSA_BITS:
        raise InvalidInput(f"{field}.n", f"{modulus.bit_length()} bits; {_MIN_RSA_BITS} to {_MAX_RSA_BITS} are allowed")
    if exponent.bit_length() > _MAX_EXPONENT_BITS:
        raise InvalidInput(f"{field}.e", f"{exponent.bit_length()} bits; at most {_MAX_EXPONENT_BITS} are allowed")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key().encrypt(content, _OAEP)
    except ValueError as error:
        raise InvalidInput(field, "not an RSA public key") from error


def _number(text: str, field: str) -> int:
    """One number has one spelling (RFC 7518, 2): with zeroes before it, a key could fill a broker's memory."""
    value = base64url.decode(text, field)
    if value[:1] == b"\0":
        raise InvalidInput(field, "begins with a zero byte")
    return int.from_bytes(value, "big")


def check(jwk: Jwk, field: str) -> None:
    """Raise `InvalidInput` unless secrets can be encrypted to this key."""
    check_algorithm(jwk, field)
    if isinstance(jwk, EcJwk):
        to_ec_key(jwk.crv, jwk.x, jwk.y, field)
    else:
        encrypt_to_rsa(jwk, b"", field)


def check_algorithm(jwk: Jwk, field: str) -> None:
    """The half of `check` that `to_ec_key` and `encrypt_to_rsa` don't do."""
    if jwk.alg not in jwk.ALGORITHMS:
        raise InvalidInput(
            f"{field}.alg", f"{jwk.alg!r} is not offered; for this key type: {', '.join(jwk.ALGORITHMS)}"
        )
