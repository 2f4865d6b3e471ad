"""What guest and broker compute for the protocol, computed a second time by code written for these tests.

Each second implementation is first held against a published vector, so that the two can't be wrong together. JWE as a whole
is read and written by jwcrypto in `test_jwe.py`; volume keys have their second HKDF in `test_keys.py`.
"""

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from csi.core.secret import Secret
from csi.guest.attest.snp import SnpAttester
from csi.guest.attest.tdx import TdxAttester
from csi.guest.attest.tsm import Tsm, TsmReport
from csi.kbs import jwe, jwk
from csi.kbs import messages as kbs

text = st.text(max_size=60)


def octets(value: str) -> bytes:
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))


def concat_kdf(shared: bytes, algorithm: bytes, bits: int, apu: bytes = b"", apv: bytes = b"") -> bytes:
    """RFC 7518, section 4.6.2, for keys of at most one round."""
    fields = b"".join(len(field).to_bytes(4, "big") + field for field in (algorithm, apu, apv))
    return hashlib.sha256(b"\0\0\0\1" + shared + fields + bits.to_bytes(4, "big")).digest()[: bits // 8]


def unwrap(key: bytes, wrapped: bytes) -> bytes:
    """RFC 3394, section 2.2.2."""
    cipher = Cipher(algorithms.AES(key), modes.ECB()).decryptor()  # noqa: S305
    check, blocks = wrapped[:8], [wrapped[at : at + 8] for at in range(8, len(wrapped), 8)]
    for step in range(6 * len(blocks), 0, -1):
        at = (step - 1) % len(blocks)
        mixed = (int.from_bytes(check, "big") ^ step).to_bytes(8, "big")
        plain = cipher.update(mixed + blocks[at])
        check, blocks[at] = plain[:8], plain[8:]
    assert check == b"\xa6" * 8
    return b"".join(blocks)


def canonical(value: Any) -> bytes:
    """RFC 8785 for strings and objects with ASCII names, which is all that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


BOB = {
    "x": "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
    "y": "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
    "d": "VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw",
}
ALICE = {"x": "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0", "y": "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"}
Z = bytes([158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49, 110, 163, 218, 128, 106,
           72, 246, 218, 167, 121, 140, 254, 144, 196])  # fmt: skip


def numbers(key: dict[str, str]) -> ec.EllipticCurvePublicNumbers:
    x, y = (int.from_bytes(octets(key[name]), "big") for name in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1())


def test_rfc_7518_appendix_c() -> None:
    bob = ec.EllipticCurvePrivateNumbers(int.from_bytes(octets(BOB["d"]), "big"), numbers(BOB)).private_key()
    assert bob.exchange(ec.ECDH(), numbers(ALICE).public_key()) == Z
    assert concat_kdf(Z, b"A128GCM", 128, b"Alice", b"Bob") == octets("VqqN6vgjbSBcIijNcacQGg")
    assert jwe.key_encryption_key(Z) == concat_kdf(Z, b"ECDH-ES+A256KW", 256)
    read = jwk.EcJwk(crv="P-256", alg="ECDH-ES+A256KW", x=BOB["x"], y=BOB["y"])
    assert jwk.from_ec_key(bob.public_key()) == read


@given(st.binary(min_size=32, max_size=66))
def test_every_key_of_a_key_is_derived_as_rfc_7518_says(shared: bytes) -> None:
    assert jwe.key_encryption_key(shared) == concat_kdf(shared, b"ECDH-ES+A256KW", 256)


def test_rfc_3394_section_4_6() -> None:
    key = bytes(range(32))
    wrapped = bytes.fromhex("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21")
    data = bytes.fromhex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f")
    assert unwrap(key, wrapped) == data


@given(st.binary(max_size=200))
def test_a_message_is_opened_by_these_three_alone(secret: bytes) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    message = json.loads(jwe.encrypt(jwk.from_ec_key(key.public_key()), Secret(secret)))
    epk = json.loads(octets(message["protected"]))["epk"]
    shared = key.exchange(ec.ECDH(), numbers(epk).public_key())
    content_key = unwrap(concat_kdf(shared, b"ECDH-ES+A256KW", 256), octets(message["encrypted_key"]))
    sealed = octets(message["ciphertext"]) + octets(message["tag"])
    assert AESGCM(content_key).decrypt(octets(message["iv"]), sealed, message["protected"].encode()) == secret


@given(text, text, text, text)
def test_report_data_are_byte_for_byte_the_protocol_s(nonce: str, x: str, y: str, more: str) -> None:
    runtime = kbs.RuntimeData(nonce=nonce, tee_pubkey=jwk.EcJwk(crv="P-256", alg="ECDH-ES+A256KW", x=x, y=y))
    key = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": x, "y": y}
    device = {"nonce": nonce, "tee-pubkey": key}
    assert msgspec.to_builtins(runtime) == device
    assert kbs.device_digest(runtime) == hashlib.sha384(canonical(device)).digest()
    primary = canonical(device | {"additional-evidence": more})
    assert kbs.runtime_digest(runtime, more) == hashlib.sha384(primary).digest()


def test_the_second_canonical_json_gives_upstream_s_vector() -> None:
    digest = "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
    assert hashlib.sha384(canonical({"b": 1, "a": "test", "c": {"d": "e"}})).hexdigest() == digest


class Asked(Tsm):
    """Notes what the TEE was asked to sign."""

    def report(self, data: bytes) -> TsmReport:
        raise LookupError(data.hex())


@pytest.mark.parametrize("tee", ["tdx", "snp"])
def test_the_tee_signs_the_digest_itself(tee: str, tmp_path: Any) -> None:
    attester = {"tdx": TdxAttester, "snp": SnpAttester}[tee](tsm=Asked(folder=tmp_path))
    with pytest.raises(LookupError, match=bytes(range(48)).hex()):
        attester.evidence(bytes(range(48)))
