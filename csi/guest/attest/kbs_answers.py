"""What a server of the KBS protocol says: cookies, choices, errors with the class that they had there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric import ec

from csi.core.errors import InvalidInput, NotFound, NotReleased, Refused, Unavailable, Unsupported
from csi.guest.attest.https import Response
from csi.kbs import messages as kbs
from csi.kbs import strict_json, volumes_api


@contextmanager
def answer_of_the_broker() -> Iterator[None]:
    """An answer that can't be read is the broker's fault, not that of a field that the caller gave."""
    try:
        yield
    except InvalidInput as error:
        raise Unavailable(f"the broker's answer can't be used: {error}") from error


def session_cookie(response: Response) -> str:
    """The cookie of a new session, as it is sent back. Raises `Unavailable` for a server that sends none."""
    for header in response.headers.get_all("Set-Cookie", []):
        pair = str(header).partition(";")[0].strip()
        if pair.startswith(f"{kbs.SESSION_COOKIE}="):
            return pair
    raise Unavailable(f"the broker sent no {kbs.SESSION_COOKIE} cookie; is the address that of a KBS?")


def check_hash(challenge: kbs.Challenge) -> None:
    """The server may choose a hash; only the default is offered here, which all but one kind of machine use."""
    chosen = challenge.extra_params.get("selected-hash-algorithm") if isinstance(challenge.extra_params, dict) else None
    if chosen is not None and str(chosen).lower() != "sha384":
        raise Unsupported(f"the broker selected the hash {chosen!r}; this guest computes sha384")


def detail(response: Response) -> str:
    """The human part of an error answer; servers and proxies that send no JSON get their status shown."""
    try:
        return strict_json.decode(response.body, kbs.ErrorBody, "error").detail
    except InvalidInput:
        return f"HTTP status {response.status}"


def raise_error(response: Response, what: str, key: ec.EllipticCurvePrivateKey) -> NoReturn:
    """Raise the broker's error with its own class; other servers' errors by their status."""
    try:
        body = volumes_api.unseal_error(key, strict_json.decode(response.body, kbs.ErrorBody, "error"))
    except InvalidInput:
        body = kbs.ErrorBody(type="", detail=f"HTTP status {response.status}")
    known = volumes_api.decode_error(body)
    if known is not None:
        raise known
    text = body.detail if what in body.detail else f"{what}: {body.detail}"
    raise {403: NotReleased, 404: NotFound}.get(response.status, Refused)(text)
