"""The volume register's messages: our own addition beside the KBS protocol, under `/kbs/v0/volumes/<volume id>/`.

Requests are strict, so that a guest's mistake is never silently half understood. Answers may carry members that an older
guest doesn't know: a measured guest image is replaced more slowly than a broker. Answers travel as JWE.
"""

import base64
import hashlib
import re
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from csi.core import errors
from csi.core.errors import InvalidInput, SealedLocalError
from csi.core.sealed import HEADER_PARTS_BYTES, Profile, header_of
from csi.core.secret import Secret
from csi.kbs import jwe, strict_json
from csi.kbs import messages as kbs
from csi.kbs.claim_name import UNNAMED, ClaimName
from csi.kbs.jwk import Jwk
from csi.kbs.register import Epoch, Generation, Nonce, PayloadBytes, Revision, VolumeRecord

SECRET_BYTES = 32
_VOLUME_ID = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,127}", re.ASCII)
_ERROR_TYPE_PREFIX = "urn:sealed-local:error:"
_SEALED = "urn:sealed-local:sealed-error"

Ticket = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""From the answer to `open`, in hex; every change of the volume in that session presents it."""


LeaseSecret = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""32 random bytes of a guest in hex. The register knows their digest; whoever presents them holds the lease."""

HeaderText = Annotated[str, msgspec.Meta(min_length=1, max_length=-(-HEADER_PARTS_BYTES // 3) * 4)]
"""A header copy's parts (`HEADER_PARTS_BYTES`, zeroes at the end left out) in base64."""


class OpenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `open`."""

    profile: Profile
    used_as: ClaimName = UNNAMED


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `lease`. `instead` is an earlier lease that this guest gives up for it."""

    ticket: Ticket
    lease: LeaseSecret
    instead: LeaseSecret | None = None


class HeldLeaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `renew` and `release`. They need no session: the lease is the proof."""

    lease: LeaseSecret


class LeaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to both, signed and not encrypted: so long the lease lasts from now on."""

    seconds: Annotated[int, msgspec.Meta(ge=0, le=3600)]


class BeginFormatRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `begin-format`."""

    ticket: Ticket
    lease: LeaseSecret
    revision: Revision
    nonce: Nonce
    payload_bytes: PayloadBytes


class CommitFormatRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `commit-format`."""

    ticket: Ticket
    lease: LeaseSecret
    revision: Revision
    nonce: Nonce
    header: HeaderText
    payload_bytes: PayloadBytes


class HeaderRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `header`."""

    ticket: Ticket


class BeginOpenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `begin-open`."""

    ticket: Ticket
    lease: LeaseSecret
    revision: Revision
    nonce: Nonce
    generation: Generation


class CommitOpenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `commit-open`."""

    ticket: Ticket
    lease: LeaseSecret
    revision: Revision
    nonce: Nonce
    generation: Generation


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record after the change, and the register's epoch; secret and ticket only in the answer to `open`, the broker's
    share of a volume key only in that to `begin-format`, the parts of the header only in that to `header`.
    """

    record: VolumeRecord
    epoch: Epoch
    secret: str | None = None
    ticket: Ticket | None = None
    share: str | None = None
    header: HeaderText | None = None


def check_volume_id(volume_id: str) -> None:
    """Raise `InvalidInput` unless it can be the id of a volume (a legal LVM name of at most 128 characters)."""
    if not _VOLUME_ID.fullmatch(volume_id) or volume_id in (".", ".."):
        raise InvalidInput("volume id", f"{volume_id[:160]!r} is not a legal volume name")


def volume_path(volume_id: str, action: str) -> str:
    """The request path of one action on one volume."""
    check_volume_id(volume_id)
    return f"{kbs.PREFIX}/volumes/{volume_id}/{action}"


def lease_path(volume_id: str, action: str) -> str:
    """The request path of `renew` or `release`."""
    check_volume_id(volume_id)
    return f"{kbs.PREFIX}/leases/{volume_id}/{action}"


def lease_digest(secret: str) -> str:
    """What the register keeps of a lease."""
    return hashlib.sha256(bytes.fromhex(secret)).hexdigest()


def encode_answer(answer: Answer) -> Secret:
    """The text of an answer, itself a secret until it is encrypted."""
    return Secret(strict_json.encode(answer))


def text_of(secret: Secret) -> str:
    """How a secret stands in an answer."""
    return base64.b64encode(secret.reveal()).decode("ascii")


def decode_answer(text: Secret) -> Answer:
    """The inverse of `encode_answer`. Errors name members, never values."""
    return strict_json.decode(text.reveal(), Answer, "answer")


def secret_of(answer: Answer) -> Secret | None:
    """The secret in an answer; None when it holds none. Raises `InvalidInput` for one of another length."""
    return _secret(answer.secret, "answer.secret")


def encode_header(header: bytes) -> str:
    """The text of a header copy, or of its parts. Raises `InvalidInput` for one with anything behind them."""
    if header[HEADER_PARTS_BYTES:].strip(b"\0"):
        raise InvalidInput("header", f"there is something behind its first {HEADER_PARTS_BYTES} bytes")
    return base64.b64encode(header[:HEADER_PARTS_BYTES].rstrip(b"\0")).decode("ascii")


def decode_header(text: str, field: str) -> bytes:
    """The whole header copy. Raises `InvalidInput` for what is not base64 of its parts."""
    parts = kbs.standard_base64(text, field)
    if len(parts) > HEADER_PARTS_BYTES:
        raise InvalidInput(field, f"{len(parts)} bytes; the parts of a header are at most {HEADER_PARTS_BYTES}")
    return header_of(parts)


def share_of(answer: Answer) -> Secret | None:
    """The broker's share of a volume key, in the same way."""
    return _secret(answer.share, "answer.share")


def _secret(text: str | None, field: str) -> Secret | None:
    if text is None:
        return None
    secret = kbs.standard_base64(text, field)
    if len(secret) != SECRET_BYTES:
        raise InvalidInput(field, f"{len(secret)} bytes instead of {SECRET_BYTES}")
    return Secret(secret)


_CARRIED: dict[str, type[SealedLocalError]] = {
    kind.__name__: kind
    for kind in (
        errors.NotFound,
        errors.Busy,
        errors.Refused,
        errors.Unavailable,
        errors.NotReleased,
        errors.LeaseLost,
    )
}


def encode_error(error: SealedLocalError) -> kbs.ErrorBody:
    """An error of the register with its class, so that the other side can raise the same one."""
    return kbs.ErrorBody(type=_ERROR_TYPE_PREFIX + type(error).__name__, detail=str(error))


def seal_error(key: Jwk, error: SealedLocalError) -> kbs.ErrorBody:
    """The same, readable with the guest's key only: what it says of a volume is for the guest and for nobody between."""
    content = Secret(strict_json.encode(encode_error(error)))
    return kbs.ErrorBody(type=_SEALED, detail=jwe.encrypt(key, content).decode("ascii"))


def unseal_error(key: ec.EllipticCurvePrivateKey, body: kbs.ErrorBody) -> kbs.ErrorBody:
    """The error inside; a body that is not sealed comes back as it is. Raises `InvalidInput` for another key."""
    if body.type != _SEALED:
        return body
    content = jwe.decrypt(key, body.detail.encode())
    return strict_json.decode(content.reveal(), kbs.ErrorBody, "error")


def decode_error(body: kbs.ErrorBody) -> SealedLocalError | None:
    """The error that the broker raised; None when the body is not one of the register's."""
    name = body.type.removeprefix(_ERROR_TYPE_PREFIX)
    if name == body.type:
        return None
    if name == errors.InvalidInput.__name__:
        field, _, problem = body.detail.partition(": ")
        return InvalidInput(field, problem or "refused by the broker")
    return _CARRIED.get(name, errors.Refused)(body.detail)
