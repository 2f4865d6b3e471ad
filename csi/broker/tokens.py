"""Attestation tokens: an EAR in a JWT, signed with ES256, so that stock CoCo guests and other KBS can use this broker.

Verifies only tokens of its own. No other algorithm and no key out of a token's header is ever accepted.
"""

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from csi import __version__
from csi.broker.claims import Claims, SampleClaims, SnpClaims, StoredClaims, TdxClaims
from csi.broker.sessions import Guest, NotAttested
from csi.broker.shown_init_data import ShownInitData
from csi.core.errors import InvalidInput
from csi.kbs import base64url, jwk, signed_answers, strict_json
from csi.kbs.messages import RuntimeData

LIFETIME_SECONDS = 300
_ISSUER = "CoCo-Attestation-Service"
_PROFILE = "tag:github.com,2024:confidential-containers/Trustee"
_COORDINATE_BYTES = 32
_MAX_TOKEN_CHARACTERS = 192 * 1024
"""Below what the server takes as headers. The largest part is init-data, see `csi.broker.shown_init_data`."""
_SILENT = {"instance-identity": 0, "file-system": 0, "runtime-opaque": 0, "storage-opaque": 0, "sourced-data": 0}
_AFFIRMED = {**_SILENT, "configuration": 2, "executables": 3, "hardware": 2}
_CONTRAINDICATED = {**_SILENT, "configuration": 0, "executables": 33, "hardware": 97}
"""AR4SI trust claims: the values that Trustee's default policy gives to known and to unknown reference values."""


class _Header(msgspec.Struct, frozen=True):
    alg: str


class _Evidence(msgspec.Struct, frozen=True, kw_only=True):
    runtime_data_claims: RuntimeData
    sealed_local_claims: StoredClaims


class _Cpu(msgspec.Struct, frozen=True, kw_only=True):
    evidence: _Evidence = msgspec.field(name="ear.veraison.annotated-evidence")


class _Submods(msgspec.Struct, frozen=True):
    cpu0: _Cpu


class _Payload(msgspec.Struct, frozen=True, kw_only=True):
    iss: str
    exp: int
    submods: _Submods


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What goes into a token."""

    guest: Guest
    runtime: RuntimeData
    additional_evidence: str
    report_data: bytes
    affirmed: bool
    init_data: ShownInitData | None = None


class TokenIssuer:
    """Signs and verifies this broker's tokens."""

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        chain: Sequence[x509.Certificate],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._clock = clock
        x, y = jwk.coordinates(key.public_key(), "P-256")
        certificates = [base64.b64encode(item.public_bytes(serialization.Encoding.DER)).decode() for item in chain]
        public = {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y, "x5c": certificates}
        self._header = base64url.encode(strict_json.encode({"typ": "JWT", "alg": "ES256", "jwk": public}))

    def sign_answer(self, *, path: str, nonce: str, status: int, body: bytes) -> str:
        """The signature over an answer about a volume; the guest has this key's certificate from its token."""
        return signed_answers.sign(self._key, path=path, nonce=nonce, status=status, body=body)

    def issue(self, attested: Attested) -> str:
        """A token for a guest whose evidence was verified."""
        now = int(self._clock())
        payload = {
            "eat_profile": _PROFILE,
            "iat": now,
            "exp": now + LIFETIME_SECONDS,
            "iss": _ISSUER,
            "ear.verifier-id": {"build": f"sealed-local {__version__}", "developer": "sealed-local"},
            "submods": {"cpu0": _cpu(attested)},
        }
        signed = f"{self._header}.{base64url.encode(strict_json.encode(payload))}"
        r, s = decode_dss_signature(self._key.sign(signed.encode("ascii"), ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
        return f"{signed}.{base64url.encode(signature)}"

    def verify(self, token: str) -> Guest:
        """The guest that a token of this broker was issued to; raises `NotAttested` for any other text."""
        try:
            payload = self._verified(token)
        except (InvalidInput, InvalidSignature, ValueError) as error:
            raise NotAttested("the bearer token is not one of this broker's") from error
        if payload.exp <= self._clock() or payload.iss != _ISSUER:
            raise NotAttested("the bearer token has expired; attest again")
        evidence = payload.submods.cpu0.evidence
        return Guest(claims=evidence.sealed_local_claims.claims, key=evidence.runtime_data_claims.tee_pubkey)

    def _verified(self, token: str) -> _Payload:
        signed, _, signature_text = token.rpartition(".")
        header, _, payload = signed.partition(".")
        if len(token) > _MAX_TOKEN_CHARACTERS or not token.isascii():
            raise InvalidInput("token", "not a token")
        if strict_json.decode(base64url.decode(header, "token.header"), _Header, "token.header").alg != "ES256":
            raise InvalidInput("token.header.alg", "not ES256")
        signature = base64url.decode(signature_text, "token.signature")
        if len(signature) != 2 * _COORDINATE_BYTES:
            raise InvalidInput("token.signature", "wrong length")
        r, s = (int.from_bytes(signature[at : at + _COORDINATE_BYTES], "big") for at in (0, _COORDINATE_BYTES))
        self._key.public_key().verify(encode_dss_signature(r, s), signed.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return strict_json.decode(base64url.decode(payload, "token.payload"), _Payload, "token.payload")


def _cpu(attested: Attested) -> dict[str, object]:
    claims = attested.guest.claims
    shown = attested.init_data
    evidence: dict[str, object] = {
        "report_data": base64.b64encode(attested.report_data).decode("ascii"),
        "runtime_data_claims": {
            "additional-evidence": attested.additional_evidence,
            **msgspec.to_builtins(attested.runtime),
        },
        claims.tee: _shown(claims),
        "sealed_local_claims": StoredClaims.of(claims),
    }
    if claims.init_data is not None:
        evidence["init_data"] = base64.b64encode(bytes.fromhex(claims.init_data.partition(":")[2])).decode("ascii")
    if shown is not None:
        evidence["init_data_claims"] = msgspec.Raw(shown.claims)
    return {
        "ear.status": "affirming" if attested.affirmed else "contraindicated",
        "ear.trustworthiness-vector": _AFFIRMED if attested.affirmed else _CONTRAINDICATED,
        "ear.appraisal-policy-id": "default",
        "ear.veraison.annotated-evidence": evidence,
        "ear.trustee.identifiers": {"validated": _identifiers(shown)},
    }


def _identifiers(shown: ShownInitData | None) -> dict[str, object]:
    """The members that a policy finds only where there is something to match."""
    found = {} if shown is None else {"container_images": shown.images, "container_uids": shown.user_ids}
    return {name: values for name, values in found.items() if values}


def _shown(claims: Claims) -> object:
    """What the token shows of the TEE to policies of other brokers, which know the sample TEE's members by these names."""
    match claims:
        case SampleClaims():
            return {"launch_digest": claims.launch_digest, "svn": claims.svn, "debug": claims.debug}
        case TdxClaims() | SnpClaims():
            return claims
    assert_never(claims)
