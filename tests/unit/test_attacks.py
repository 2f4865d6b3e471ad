"""The attacks on attestation by their names, each in a test of its own: nonce reuse, relayed evidence, key substitution,
downgrade to the sample TEE, algorithm confusion. The guest is an SEV-SNP one whose chip the test plays.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jwcrypto.jwk
import jwcrypto.jwt
import pytest
import rfc8785
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from csi.broker.service import Broker
from csi.broker.sessions import NotAttested
from csi.broker.verifiers.snp import SnpVerifier
from csi.core.errors import InvalidInput, NotReleased, SealedLocalError
from csi.core.secret import Secret
from csi.kbs import init_data, jwe, jwk, strict_json, volumes_api
from csi.kbs import messages as kbs
from tests.fakes import amd
from tests.fakes.broker import INIT_DATA, make_directory
from tests.unit.test_attested_guests import PATH, PLATFORM, POLICY, SnpGuest, host_data

SECRET = Secret(b"of this workload")
VOLUMES = POLICY + 'volumes = ["pvc-*"]\n'


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    yield from serving(tmp_path, VOLUMES)


def serving(root: Path, policy: str) -> Iterator[Broker]:
    directory = make_directory(root / "broker", policy)
    with closing(directory.load_broker({})) as made:
        made.verifiers = {**made.verifiers, "snp": SnpVerifier(roots=PLATFORM.roots(), clock=amd.NOW.timestamp)}
        made.put_resource("operator", PATH, SECRET)
        yield made


def read(broker: Broker, session: str, key: ec.EllipticCurvePrivateKey) -> Secret:
    return jwe.decrypt(key, broker.resource(broker.guest(session, None), PATH))


def test_the_honest_guest_reads_its_resource(broker: Broker) -> None:
    guest = SnpGuest(broker)
    session, nonce = guest.challenge()
    runtime = guest.runtime(nonce)
    broker.attest(session, guest.message(runtime, guest.report(runtime)))
    assert read(broker, session, guest.key) == SECRET


def test_nonce_reuse(broker: Broker) -> None:
    guest = SnpGuest(broker)
    session, nonce = guest.challenge()
    runtime = guest.runtime(nonce)
    message = guest.message(runtime, guest.report(runtime))
    token = broker.attest(session, message)[1]

    # In a session of its own a message is no use, whatever of it is kept.
    later, other = guest.challenge()
    with pytest.raises(NotReleased, match="the nonce is not the one of this session"):
        broker.attest(later, message)
    with pytest.raises(NotReleased, match="does not carry this session's nonce and key"):
        broker.attest(later, guest.message(guest.runtime(other), guest.report(runtime)))
    # Nor after its session, though the nonce was once good.
    now = broker.sessions._clock()
    broker.sessions._clock = lambda: now + kbs.SESSION_SECONDS
    with pytest.raises(NotAttested):
        broker.attest(session, message)
    broker.sessions._clock = lambda: now
    # Within it, it changes nothing: the answer is the first one, for the first key.
    thief = SnpGuest(broker)
    assert broker.attest(session, thief.message(thief.runtime(nonce), thief.report(thief.runtime(nonce))))[1] == token
    with pytest.raises(InvalidInput, match="made for another key"):
        read(broker, session, thief.key)
    assert len({guest.challenge()[1] for _ in range(100)}) == 100


def test_relayed_evidence(broker: Broker) -> None:
    """The host asks in its own session and has the honest guest answer the challenge. All that comes is for the guest."""
    guest, thief = SnpGuest(broker), SnpGuest(broker)
    session, nonce = thief.challenge()
    runtime = guest.runtime(nonce)
    broker.attest(session, guest.message(runtime, guest.report(runtime)))
    with pytest.raises(InvalidInput, match="made for another key"):
        read(broker, session, thief.key)
    caller = broker.caller(session)
    opened = broker.volume(caller, "pvc-1", "open", b'{"profile":"xts","used_as":{"namespace":null,"claim":null}}')
    with pytest.raises(InvalidInput, match="made for another key"):
        jwe.decrypt(thief.key, opened)
    # Without the ticket inside, the session changes nothing in the register.
    request = volumes_api.LeaseRequest(ticket="0" * 64, lease="1" * 64, instead=None)
    before = broker.store.volumes()
    with pytest.raises(NotReleased, match="the ticket is not one of this session"):
        broker.volume(caller, "pvc-1", "lease", strict_json.encode(request))
    assert broker.store.volumes() == before


def test_key_substitution(broker: Broker) -> None:
    guest, thief = SnpGuest(broker), SnpGuest(broker)
    session, nonce = guest.challenge()
    report = guest.report(guest.runtime(nonce))
    with pytest.raises(NotReleased, match="does not carry this session's nonce and key"):
        broker.attest(session, guest.message(thief.runtime(nonce), report))
    # One coordinate, or the point's other half, is another key as well.
    own, other = guest.runtime(nonce).tee_pubkey, thief.runtime(nonce).tee_pubkey
    assert isinstance(own, jwk.EcJwk)
    assert isinstance(other, jwk.EcJwk)
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    mirrored = prime - int.from_bytes(base64.urlsafe_b64decode(own.y + "="), "big")
    text = base64.urlsafe_b64encode(mirrored.to_bytes(32, "big")).decode().rstrip("=")
    for key in (jwk.EcJwk(crv="P-256", alg=own.alg, x=own.x, y=y) for y in (other.y, text)):
        with pytest.raises(SealedLocalError, match=r"not a point on P-256|does not carry this session's nonce and key"):
            broker.attest(session, guest.message(kbs.RuntimeData(nonce=nonce, tee_pubkey=key), report))
    with pytest.raises(NotAttested, match="not"):
        broker.caller(session)


def test_downgrade_to_sample(tmp_path: Path) -> None:
    """Also where the operator allows the sample TEE for another workload, or lists it in this one."""
    for number, policy in enumerate((VOLUMES, VOLUMES + "[tee.sample]\nallow = true\n")):
        for broker in serving(tmp_path / str(number), policy):
            session, nonce = SnpGuest(broker).challenge()
            with pytest.raises(NotReleased, match="malformed SEV-SNP evidence"):
                broker.attest(session, sample_message(SnpGuest(broker).runtime(nonce)))
            sample = SnpGuest(broker, tee="sample")
            if number == 0:
                with pytest.raises(NotReleased, match=r"\[tee.sample\] allow = false"):
                    sample.challenge()
                continue
            session, nonce = sample.challenge()
            broker.attest(session, sample_message(sample.runtime(nonce)))
            with pytest.raises(NotReleased, match="tee does not list sample"):
                read(broker, session, sample.key)
            # Nor is a real report taken in a session that began as sample.
            session, nonce = sample.challenge()
            runtime = sample.runtime(nonce)
            with pytest.raises(NotReleased, match="malformed sample evidence"):
                broker.attest(session, sample.message(runtime, sample.report(runtime)))


def sample_message(runtime: kbs.RuntimeData) -> bytes:
    evidence = {"svn": "1", "report_data": base64.b64encode(kbs.runtime_digest(runtime)).decode()}
    return strict_json.encode(
        kbs.Attestation(
            init_data=kbs.InitData(format="toml", body=INIT_DATA),
            runtime_data=runtime,
            tee_evidence=kbs.Evidence(primary_evidence=evidence),
        )
    )


def test_algorithm_confusion_of_tokens(broker: Broker) -> None:
    good = SnpGuest(broker).attest()
    header, payload, signature = good.split(".")
    shown = json.loads(unb64(header))
    public = broker.issuer._key.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    forged = [f"{b64(json.dumps({**shown, 'alg': 'none'}).encode())}.{payload}.", f"{header}.{payload}."]
    for secret in (der, pem, pem.strip(), unb64(shown["jwk"]["x"]), b""):
        for name in ("HS256", "ES256"):
            text = f"{b64(json.dumps({**shown, 'alg': name}).encode())}.{payload}"
            forged.append(f"{text}.{b64(hmac.new(secret, text.encode(), hashlib.sha256).digest())}")
    heads = ({**shown, "alg": name} for name in ("es256", "ES384", "RS256", "PS256", "EdDSA", "ES256K", None))
    forged += [f"{b64(json.dumps(head).encode())}.{payload}.{signature}" for head in heads]
    own = jwcrypto.jwk.JWK.generate(kty="EC", crv="P-256")
    for jwk_shown in (own.export_public(as_dict=True), {**own.export_public(as_dict=True), "x5c": shown["jwk"]["x5c"]}):
        token = jwcrypto.jwt.JWT(
            header={"typ": "JWT", "alg": "ES256", "jwk": jwk_shown}, claims=unb64(payload).decode()
        )
        token.make_signed_token(own)
        forged.append(token.serialize())
    # Signed by the right key, but said to be signed in another way.
    for name in ("none", "ES384", "HS256"):
        text = f"{b64(json.dumps({**shown, 'alg': name}).encode())}.{payload}"
        r, s = decode_dss_signature(broker.issuer._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        forged.append(f"{text}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}")
    # (0, 0) verified everything in a library that has had its own CVE.
    forged.append(f"{header}.{payload}.{b64(bytes(64))}")
    for token in forged:
        with pytest.raises(NotAttested, match="not one of this broker's"):
            broker.guest(None, token)
    assert broker.guest(None, good).claims.tee == "snp"


def test_algorithm_confusion_of_keys(broker: Broker) -> None:
    """A key is what its type says: an algorithm of another type, a weak one, or another curve is no key."""
    guest = SnpGuest(broker)
    session, nonce = guest.challenge()
    good: dict[str, Any] = json.loads(strict_json.encode(guest.runtime(nonce).tee_pubkey))
    numbers = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key().public_numbers()
    small = {"kty": "RSA", "n": b64(b"\xff" * 64), "e": "AQAB", "alg": "RSA-OAEP-256"}
    large = {"kty": "RSA", "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB"}
    odd = [{**good, "alg": name} for name in ("RSA-OAEP-256", "dir", "none", "A256KW", "ECDH-ES", "")]
    odd += [{**large, "alg": name} for name in ("RSA1_5", "RSA-OAEP", "ECDH-ES+A256KW", "none")]
    odd += [{**good, "crv": "P-521"}, {**good, "crv": "P-384"}, {**good, "kty": "RSA"}, {**good, "kty": "oct"}, small]
    for key in odd:
        with pytest.raises(InvalidInput, match="runtime-data"):
            broker.attest(session, over_key(guest, nonce, key))
    with pytest.raises(NotAttested):
        broker.caller(session)
    broker.attest(session, over_key(guest, nonce, good))


def over_key(guest: SnpGuest, nonce: str, key: dict[str, Any]) -> bytes:
    """Evidence that is right for a key as it is written, whatever it says."""
    digest = hashlib.sha384(rfc8785.dumps({"additional-evidence": "", "nonce": nonce, "tee-pubkey": key})).digest()
    report = guest.platform.report(at_0x50=digest.ljust(64, b"\0"), at_0xc0=host_data(INIT_DATA))
    document = json.loads(guest.message(guest.runtime(nonce), report))
    document["runtime-data"]["tee-pubkey"] = key
    return json.dumps(document).encode()


@pytest.mark.parametrize(("measured", "said"), [("sha384", "sha256"), ("sha256", "sha384"), ("sha512", "sha256")])
def test_algorithm_confusion_of_init_data(broker: Broker, measured: str, said: str) -> None:
    """HOSTDATA is 32 bytes, so digests are cut. The text itself says by which hash, and the text is what is measured."""
    shown = INIT_DATA.replace("sha384", said)
    digest = hashlib.new(measured, shown.encode()).digest()[:32]
    assert init_data.parse(shown).digest.startswith(f"{said}:")
    with pytest.raises(NotReleased, match="HOSTDATA does not carry the digest of the init-data"):
        SnpGuest(broker, shown_init_data=shown).attest(at_0xc0=digest)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "dir"},
        {"alg": "none"},
        {"alg": "ECDH-ES"},
        {"alg": "A256KW"},
        {"alg": "RSA-OAEP-256"},
        {"enc": "A128GCM"},
    ],
)
def test_algorithm_confusion_of_answers(header: dict[str, str]) -> None:
    """The guest decrypts by the one algorithm that it asked for, whatever an answer says."""
    key = ec.generate_private_key(ec.SECP256R1())
    answer = json.loads(jwe.encrypt(jwk.from_ec_key(key.public_key()), SECRET))
    protected = json.loads(unb64(answer["protected"]))
    answer["protected"] = b64(json.dumps({**protected, **header}, separators=(",", ":")).encode())
    with pytest.raises(InvalidInput, match=r"JWE\.protected\.(alg|enc)"):
        jwe.decrypt(key, json.dumps(answer).encode())


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
