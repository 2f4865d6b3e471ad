"""Who signs a broker's answers about volumes: the attestation token says it."""

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from csi.kbs import base64url, signed_answers, strict_json
from csi.kbs import messages as kbs


class _TokenKey(msgspec.Struct, frozen=True):
    x5c: list[str] = []


class _TokenHeader(msgspec.Struct, frozen=True):
    jwk: _TokenKey = _TokenKey()


def signer_of(token_answer: bytes, authorities_pem: str) -> ec.EllipticCurvePublicKey | None:
    """Who signs answers about volumes, by the token; None where another server's token has no such certificate, which
    matters to volumes only. Raises `InvalidInput` for a certificate that the pinned authority has not issued for this.
    """
    token = strict_json.decode(token_answer, kbs.TokenAnswer, "token").token
    if token.count(".") != 2:
        return None
    header = base64url.decode(token.partition(".")[0], "token")
    chain = strict_json.decode(header, _TokenHeader, "token").jwk.x5c
    if not chain:
        return None
    return signed_answers.signer(kbs.standard_base64(chain[0], "token.x5c"), authorities_pem)
