"""What a server of the KBS protocol says: cookies, choices, errors with the class that they had there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric import ec

from csi.core.errors import InvalidInput, NotFound, NotReleased, Refused, Unavailable, Unsupported
from csi.guest.attest.https import Response
from csi.kbs import messages as kbs
from csi.kbs import strict_json, volumes_api

_WORTH_A_HANDSHAKE = frozenset({"TokenNotFound", "TokenVerifierError", "AttestationError"})


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


def session_is_over(response: Response) -> bool:
    """Whether a new handshake may change the answer. Upstream says 401 to everything, so its name of the error tells."""
    return response.status == 401 and _name(response) in _WORTH_A_HANDSHAKE


def session_is_unknown(response: Response) -> bool:
    """The same for an answer to evidence, where `AttestationError` is a verdict."""
    return response.status == 401 and _name(response) == "TokenNotFound"


def check_register(response: Response, what: str) -> None:
    """Raises `Refused` for the answer of a KBS that has resources and no volumes. It knows no signatures either."""
    if response.status == 404 and _name(response) == "PluginNotFound":
        raise Refused(
            f"{what}: this server keeps no register of volumes, it is a KBS for resources alone ({detail(response)}). "
            "broker.url has to name a `sealed-local broker`, or the policy has to say kind = 'trustee' and a root resource"
        )


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
    if body.type == kbs.error_type("PluginInternalError") and response.status == 401:
        raise NotFound(f"{text} (upstream says this where there is none, and where its store failed)")
    raise {401: NotReleased, 403: NotReleased, 404: NotFound}.get(response.status, Refused)(text)


def _name(response: Response) -> str:
    """The error's name of the KBS protocol, "" for an answer that has none."""
    try:
        kind = strict_json.decode(response.body, kbs.ErrorBody, "error").type
    except InvalidInput:
        return ""
    prefix = kbs.error_type("")
    return kind.removeprefix(prefix) if kind.startswith(prefix) else ""
