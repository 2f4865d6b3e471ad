"""JWE agrees with an independent implementation both ways, and has the one byte form that CoCo's clients accept."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwcrypto import jwe as jwcrypto_jwe
from jwcrypto import jwk as jwcrypto_jwk

from csi.core.errors import InvalidInput
from csi.core.secret import Secret
from csi.kbs import base64url, jwe, jwk

P256, P521 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP521R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PLAINTEXT = b"shhhhhhh\n"


def rsa_jwk(key: rsa.RSAPrivateKey) -> jwk.RsaJwk:
    numbers = key.public_key().public_numbers()
    return jwk.RsaJwk(
        alg="RSA-OAEP-256",
        n=base64url.encode(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")),
        e=base64url.encode(numbers.e.to_bytes(3, "big")),
    )


def recipients() -> list[tuple[object, jwk.Jwk]]:
    return [(P256, jwk.from_ec_key(P256.public_key())), (P521, jwk.from_ec_key(P521.public_key())), (RSA, rsa_jwk(RSA))]


def parts(text: bytes) -> dict[str, str]:
    return json.loads(text)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("key", "public"), recipients(), ids=["P-256", "P-521", "RSA"])
def test_jwcrypto_reads_what_we_write(key: object, public: jwk.Jwk) -> None:
    token = jwcrypto_jwe.JWE()
    token.deserialize(jwe.encrypt(public, Secret(PLAINTEXT)).decode(), jwcrypto_jwk.JWK.from_pyca(key))
    assert token.payload == PLAINTEXT


@pytest.mark.parametrize("key", [P256, P521], ids=["P-256", "P-521"])
def test_we_read_what_jwcrypto_writes(key: ec.EllipticCurvePrivateKey) -> None:
    token = jwcrypto_jwe.JWE(PLAINTEXT, protected='{"alg":"ECDH-ES+A256KW","enc":"A256GCM"}')
    token.add_recipient(jwcrypto_jwk.JWK.from_pyca(key.public_key()))
    # jwcrypto's flattened form puts epk outside the protected header; its compact form is the one CoCo can read.
    names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
    text = json.dumps(dict(zip(names, token.serialize(compact=True).split("."), strict=True))).encode()
    assert jwe.decrypt(key, text).reveal() == PLAINTEXT


@pytest.mark.parametrize(("key", "public"), recipients()[:2], ids=["P-256", "P-521"])
def test_we_read_what_we_write(key: ec.EllipticCurvePrivateKey, public: jwk.Jwk) -> None:
    assert jwe.decrypt(key, jwe.encrypt(public, Secret(PLAINTEXT))).reveal() == PLAINTEXT


@pytest.mark.parametrize(("key", "public"), recipients(), ids=["P-256", "P-521", "RSA"])
def test_header_survives_the_reserialisation_of_the_rust_client(key: object, public: jwk.Jwk) -> None:
    message = parts(jwe.encrypt(public, Secret(PLAINTEXT)))
    assert set(message) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
    header = json.loads(base64.urlsafe_b64decode(message["protected"] + "=="))
    rest = {name: header[name] for name in sorted(set(header) - {"alg", "enc"})}
    if "epk" in rest:
        rest["epk"] = {name: rest["epk"][name] for name in ("crv", "kty", "x", "y")}
    again = json.dumps({"alg": header["alg"], "enc": header["enc"], **rest}, separators=(",", ":"))
    assert base64url.encode(again.encode()) == message["protected"]


def test_no_value_is_padded() -> None:
    message = parts(jwe.encrypt(jwk.from_ec_key(P256.public_key()), Secret(PLAINTEXT)))
    assert not any("=" in value for value in message.values())


def test_key_encryption_key_vector() -> None:
    assert jwe.key_encryption_key(bytes(32)).hex() == "4d4cc5347dd8f6a4392e7ee74995e2e07fca564634f0fdcb65be59dbe0fcb3e4"


def test_header_order_vector() -> None:
    # kbs-types hashes exactly this text for a header without a key.
    assert base64url.encode(b'{"alg":"fakealg","enc":"fakeenc"}') == "eyJhbGciOiJmYWtlYWxnIiwiZW5jIjoiZmFrZWVuYyJ9"


def good_message() -> dict[str, str]:
    return parts(jwe.encrypt(jwk.from_ec_key(P256.public_key()), Secret(PLAINTEXT)))


@pytest.mark.parametrize("member", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_any_altered_member_is_refused(member: str) -> None:
    message = good_message()
    raw = bytearray(base64url.decode(message[member], member))
    raw[len(raw) // 2] ^= 1
    message[member] = base64url.encode(bytes(raw))
    with pytest.raises(InvalidInput):
        jwe.decrypt(P256, json.dumps(message).encode())


@pytest.mark.parametrize("member", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_every_member_is_needed(member: str) -> None:
    message = good_message()
    del message[member]
    with pytest.raises(InvalidInput, match=member):
        jwe.decrypt(P256, json.dumps(message).encode())


@pytest.mark.parametrize("extra", [{"aad": ""}, {"aad": None}, {"header": {}}])
def test_members_that_change_the_meaning_are_refused(extra: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        jwe.decrypt(P256, json.dumps(good_message() | extra).encode())


def test_message_for_another_key_is_refused_without_a_word_of_it() -> None:
    text = jwe.encrypt(jwk.from_ec_key(ec.generate_private_key(ec.SECP256R1()).public_key()), Secret(PLAINTEXT))
    with pytest.raises(InvalidInput, match="another key"):
        jwe.decrypt(P256, text)


def with_header(**changes: object) -> bytes:
    message = good_message()
    header = json.loads(base64url.decode(message["protected"], "protected")) | changes
    return json.dumps(message | {"protected": base64url.encode(json.dumps(header).encode())}).encode()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alg": "ECDH-ES"}, "alg"),
        ({"enc": "A128GCM"}, "enc"),
        ({"epk": None}, "epk"),
        ({"zip": "DEF"}, "zip"),
        ({"epk": {"crv": "P-521", "kty": "EC", "x": "AA", "y": "AA"}}, "epk"),
        # Off the curve: accepting it would leak the private key bit by bit.
        ({"epk": {"crv": "P-256", "kty": "EC", "x": "A" * 43, "y": "A" * 42 + "E"}}, "epk"),
    ],
)
def test_wrong_headers_are_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        jwe.decrypt(P256, with_header(**changes))


@pytest.mark.parametrize("text", ["=", "AA==", "A", "AB", "A+", "A/", "Ä", "AA\n"])
def test_other_spellings_of_base64_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        base64url.decode(text, "field")


def rsa_of(modulus: int, exponent: int) -> jwk.RsaJwk:
    n, e = (number.to_bytes((number.bit_length() + 7) // 8, "big") for number in (modulus, exponent))
    return jwk.RsaJwk(alg="RSA-OAEP-256", n=base64url.encode(n), e=base64url.encode(e))


MODULUS = RSA.public_key().public_numbers().n
BAD_KEYS = {
    "a curve that is not offered": jwk.EcJwk(crv="P-384", alg="ECDH-ES+A256KW", x="AA", y="AA"),
    "an algorithm that is not offered": jwk.EcJwk(crv="P-256", alg="ECDH-ES", x="AA", y="AA"),
    "short coordinates": jwk.EcJwk(crv="P-256", alg="ECDH-ES+A256KW", x="AA", y="AA"),
    "RSA1_5": jwk.RsaJwk(alg="RSA1_5", n="AA", e="AQAB"),
    "1,024 bits": rsa_of((1 << 1024) - 1, 65537),
    "32,768 bits": rsa_of((1 << 32768) - 1, 65537),
    "exponent 0": jwk.RsaJwk(alg="RSA-OAEP-256", n=base64url.encode(b"\xff" * 256), e="AA"),
    "zeroes before the modulus": jwk.RsaJwk(
        alg="RSA-OAEP-256", n=base64url.encode(bytes(3_000) + MODULUS.to_bytes(256, "big")), e="AQAB"
    ),
    "a zero before the exponent": jwk.RsaJwk(
        alg="RSA-OAEP-256", n=base64url.encode(MODULUS.to_bytes(256, "big")), e="AAEAAQ"
    ),
    "exponent 1": rsa_of(MODULUS, 1),
    "an even exponent": rsa_of(MODULUS, 65536),
    "an even modulus": rsa_of(MODULUS - 1, 65537),
    "a power of two": rsa_of(1 << 2047, 3),
    "an exponent of 65 bits": rsa_of(MODULUS, (1 << 64) + 1),
    "an exponent of 101 bits, that OpenSSL takes until it encrypts": rsa_of((1 << 4096) - 1, (1 << 100) + 1),
    "a modulus of 8,192 even bits": rsa_of((1 << 8192) - 2, 65537),
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
def test_nothing_is_encrypted_to_a_bad_key_and_it_is_refused_before_that(key: jwk.Jwk) -> None:
    with pytest.raises(InvalidInput, match="tee-pubkey"):
        jwk.check(key, "tee-pubkey")
    with pytest.raises(InvalidInput, match="tee-pubkey"):
        jwe.encrypt(key, Secret(PLAINTEXT))


@pytest.mark.parametrize("bits", [2048, 3072, 8192])
@pytest.mark.parametrize("exponent", [3, 65537, (1 << 64) - 1])
def test_what_passes_the_check_can_be_encrypted_to(bits: int, exponent: int) -> None:
    key = rsa_of((1 << bits) - 1, exponent)
    jwk.check(key, "tee-pubkey")
    assert jwe.encrypt(key, Secret(PLAINTEXT))
