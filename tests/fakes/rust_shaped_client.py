"""A KBS client with the habits of CoCo's: typed keys, a re-serialised JWE header, cookie jar, three attempts, JSON errors.

Written from the protocol facts, on jwcrypto and httpx2, sharing no code with the project: what it can read, a stock guest
can read. Where the upstream client would fail, it raises.
"""

import base64
import hashlib
import json
import ssl
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

ATTEMPTS = 3


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64url(text: str) -> bytes:
    assert "=" not in text, "padded base64url is a parse error"
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class KbsError(Exception):
    """The server's `{"type", "detail"}`."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(f"{status} {kind}: {detail}")
        self.status, self.kind, self.detail = status, kind, detail


class ResourceNotFound(Exception):
    """The server answered 404."""


class RustShapedClient:
    """The background-check client: cookie, and a new handshake on 401. With `token=True`, the bearer client instead."""

    def __init__(
        self, url: str, ca_pem: str, *, key: PrivateKeyTypes | None = None, init_data: str | None = None
    ) -> None:
        context = ssl.create_default_context(cadata=ca_pem)
        self.http = httpx2.Client(base_url=f"{url}/kbs/v0", verify=context, trust_env=False)
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.init_data = init_data
        self.version = "0.4.0"
        self.handshakes = 0

    def close(self) -> None:
        self.http.close()

    def jwk(self) -> dict[str, str]:
        public = json.loads(JWK.from_pyca(self.key).export_public())
        members = ("kty", "crv", "x", "y") if isinstance(self.key, ec.EllipticCurvePrivateKey) else ("kty", "n", "e")
        alg = "RSA-OAEP-256" if isinstance(self.key, rsa.RSAPrivateKey) else "ECDH-ES+A256KW"
        return {"alg": alg, **{name: public[name] for name in members}}

    def handshake(self, **attestation_changes: Any) -> str:
        """Auth and attest; answers the token."""
        self.handshakes += 1
        extra = {"supported-hash-algorithms": ["sha256", "sha384", "sha512", "sm3"]}
        answer = self.http.post("/auth", json={"version": self.version, "tee": "sample", "extra-params": extra})
        self.raise_401(answer)
        challenge = answer.json()
        assert set(challenge) >= {"nonce", "extra-params"}, "the client's parser needs both"
        selected = challenge["extra-params"]
        assert selected == "" or "selected-hash-algorithm" not in selected
        attestation = self.attestation(challenge["nonce"]) | attestation_changes
        answer = self.http.post("/attest", content=json.dumps(attestation))
        self.raise_401(answer)
        assert set(answer.json()) == {"token"}
        return str(answer.json()["token"])

    def attestation(self, nonce: str) -> dict[str, Any]:
        runtime = {"nonce": nonce, "tee-pubkey": self.jwk()}
        hashed = json.dumps({**runtime, "additional-evidence": ""}, sort_keys=True, separators=(",", ":"))
        report_data = base64.b64encode(hashlib.sha384(hashed.encode()).digest()).decode()
        return {
            "init-data": None if self.init_data is None else {"format": "toml", "body": self.init_data},
            "runtime-data": runtime,
            "tee-evidence": {
                "primary_evidence": {"svn": "1", "report_data": report_data},
                "additional_evidence": "",
            },
        }

    def get(self, path: str) -> bytes:
        """A resource, by cookie."""
        for _ in range(ATTEMPTS):
            answer = self.http.get(f"/resource/{path}")
            if answer.status_code == 200:
                return self.decrypt(answer.content)
            if answer.status_code == 404:
                raise ResourceNotFound(path)
            body = self.error(answer)
            if answer.status_code != 401:
                raise KbsError(answer.status_code, *body)
            self.handshake()
        raise KbsError(401, *body)

    def get_with_token(self, path: str, token: str) -> bytes:
        """A resource, by bearer token and without a cookie, as CDH does it."""
        self.http.cookies.clear()
        answer = self.http.get(f"/resource/{path}", headers={"Authorization": f"Bearer {token}"})
        if answer.status_code != 200:
            raise KbsError(answer.status_code, *self.error(answer))
        return self.decrypt(answer.content)

    def decrypt(self, content: bytes) -> bytes:
        """Through the header as this client writes it, not as it came: that is what upstream authenticates."""
        message = json.loads(content)
        assert "aad" not in message
        protected = json.loads(unb64url(message["protected"]))
        rest = {name: protected[name] for name in sorted(set(protected) - {"alg", "enc"})}
        if "epk" in rest:
            rest["epk"] = {name: rest["epk"][name] for name in sorted(rest["epk"])}
            assert rest["epk"]["crv"] == self.jwk()["crv"]
        assert protected["alg"] == self.jwk()["alg"]
        again = json.dumps({"alg": protected["alg"], "enc": protected["enc"], **rest}, separators=(",", ":"))
        others = [message[name] for name in ("encrypted_key", "iv", "ciphertext", "tag")]
        for text in others:
            unb64url(text)
        token = JWE()
        token.deserialize(".".join([b64url(again.encode()), *others]), JWK.from_pyca(self.key))
        return bytes(token.payload)

    def raise_401(self, answer: httpx2.Response) -> None:
        if answer.status_code != 200:
            raise KbsError(answer.status_code, *self.error(answer))

    @staticmethod
    def error(answer: httpx2.Response) -> tuple[str, str]:
        body = answer.json()
        assert set(body) == {"type", "detail"}, "a client fails on any other error body"
        return body["type"], body["detail"]
