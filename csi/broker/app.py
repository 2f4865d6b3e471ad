"""The broker over HTTP: routes, cookies, and one table from errors to statuses. All decisions are in `service`.

Every answer but 200 is JSON `{"type", "detail"}`, because real clients fail on anything else. Where the upstream server
answers 401 to everything, this one says 403 (denied) and 404 (missing): clients then don't attest again in vain.
"""

import asyncio
import contextvars
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from csi.broker import deadline
from csi.broker.health import Health
from csi.broker.metrics import PAGE_TYPE, Metrics
from csi.broker.service import Broker
from csi.broker.sessions import Guest, NotAttested, Session
from csi.core import errors, log
from csi.core.errors import SealedLocalError
from csi.core.secret import Secret
from csi.kbs import messages as kbs
from csi.kbs import signed_answers, strict_json, volumes_api

_log = logging.getLogger(__name__)

_STATUS_OF: tuple[tuple[type[SealedLocalError], int], ...] = (
    (errors.InvalidInput, 400),
    (errors.NotReleased, 403),
    (errors.NotFound, 404),
    (errors.Busy, 409),
    (errors.Refused, 412),
    (errors.LeaseLost, 412),
    (errors.Untrusted, 412),
    (errors.Unavailable, 503),
)
_KBS_NAME_OF = {403: "PolicyDeny", 404: "PluginInternalError", 503: "StorageBackendInitialization"}
_ADMIN = "admin"
_OF_THE_ADMIN = ("resource-admin", "policy-admin")
_POLICY_CALLS = ("resource-policy", "attestation-policy", "reference-value")
"""Upstream's calls about its policies."""
_SHORT_BODY_BYTES = 16 * 1024
_LONG_BODY_BYTES = 512 * 1024
"""Evidence with init-data and event logs, or a header copy in base64, which has 380 KiB at most."""
_REQUEST_SECONDS = 5.0
"""Shorter than guests wait for an answer, so that they hear why there is none."""
_LONGEST_IN_LOG = 160
"""Of a name that is not checked yet; one that is right is shorter."""
_THREADS = 40
"""Requests that wait for the database at one time."""

Handler = Callable[[Request, bytes], Response]


class Admin:
    """Recognises the administrator's bearer token. Without a configured token nobody is one."""

    def __init__(self, token: Secret | None) -> None:
        self._digest = None if token is None else hashlib.sha256(token.reveal()).digest()

    def check(self, bearer: str | None) -> None:
        """Raise `NotReleased` unless `bearer` is the token."""
        offered = hashlib.sha256((bearer or "").encode()).digest()
        if self._digest is None or not hmac.compare_digest(offered, self._digest):
            raise errors.NotReleased("the administrator's bearer token is missing or wrong")


class BrokerApp:
    """The handlers; `asgi` is what a server runs."""

    def __init__(self, broker: Broker, admin: Admin) -> None:
        self._broker = broker
        self._admin = admin
        self._metrics = Metrics()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="request")
        health = Health(broker.store.probe)
        resource, volume = f"{kbs.PREFIX}/resource/{{path:path}}", f"{kbs.PREFIX}/volumes/{{volume_id}}/{{action}}"
        lease = f"{kbs.PREFIX}/leases/{{volume_id}}/{{action}}"
        application = Starlette(
            routes=[
                Route(f"{kbs.PREFIX}/auth", self._endpoint("auth", self._auth, waits=False), methods=["POST"]),
                Route(f"{kbs.PREFIX}/attest", self._endpoint("attest", self._attest), methods=["POST"]),
                Route(resource, self._endpoint("resource", self._get_resource), methods=["GET"]),
                Route(resource, self._endpoint("resource-admin", self._put_resource), methods=["POST"]),
                Route(resource, self._endpoint("resource-admin", self._delete_resource), methods=["DELETE"]),
                Route(volume, self._endpoint("volumes", self._volume), methods=["POST"]),
                Route(lease, self._endpoint("leases", self._lease), methods=["POST"]),
                *(
                    Route(
                        f"{kbs.PREFIX}/{call}{rest}",
                        self._endpoint("policy-admin", self._policy),
                        methods=["GET", "POST"],
                    )
                    for call in _POLICY_CALLS
                    for rest in ("", "/{id:path}")
                ),
                Route("/healthz", health.alive),
                Route("/readyz", health.ready),
                Route("/metrics", self._page),
            ],
            exception_handlers={HTTPException: _unknown_path},
        )
        # A redirect has no body, which real clients can't read; a path with a slash at its end is told to be unknown.
        application.router.redirect_slashes = False
        self.asgi = application

    def _endpoint(self, name: str, handler: Handler, *, waits: bool = True) -> Callable[[Request], Awaitable[Response]]:
        """`waits`: for the disk, or for whoever does. What doesn't is answered at once; a thread would take longer."""

        async def endpoint(request: Request) -> Response:
            room, refusal = self._room(name, request)
            try:
                body = await _limited_body(request, room)
            except ClientDisconnect:
                return Response(status_code=400)
            if body is None and refusal is not None:
                # Not that it is too long: to this guest, attested anew, it would not be.
                response = _refusal(name, refusal)
            elif body is None:
                response = _error(413, kbs.error_type("SerdeError"), f"more than {room} bytes")
            else:
                # From the whole request on: waiting for a thread counts as well as waiting for the database.
                with deadline.within(_REQUEST_SECONDS):
                    answer = partial(self._answer, name, handler, request, body)
                    response = await self._in_a_thread(answer) if waits else answer()
            self._metrics.answered(name, response.status_code)
            return response

        return endpoint

    def _room(self, name: str, request: Request) -> tuple[int, errors.NotReleased | None]:
        """How long the body may be. Who has shown nothing yet gets little room, as there may be many; the refusal says what
        is missing for more.
        """
        cookie, most = request.cookies.get(kbs.SESSION_COOKIE), _SHORT_BODY_BYTES
        try:
            if name == "attest":
                self._broker.sessions.find(cookie)
                most = _LONG_BODY_BYTES
            elif name == "volumes":
                self._broker.caller(cookie)
                most = _LONG_BODY_BYTES
            elif name in _OF_THE_ADMIN:
                self._admin.check(_bearer(request))
                most = kbs.BODY_LIMIT_BYTES
        except errors.NotReleased as error:
            return most, error
        return most, None

    async def _in_a_thread(self, answer: Callable[[], Response]) -> Response:
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, answer)

    def _answer(self, name: str, handler: Handler, request: Request, body: bytes) -> Response:
        with log.context(request=name, peer=request.client.host if request.client else ""):
            try:
                return handler(request, body)
            except SealedLocalError as error:
                response = _refusal(name, error)
                _log.info("refused", extra={"status": response.status_code, "why": str(error)})
                return response
            except Exception:
                # The text of an unforeseen error may hold anything; it goes to the log's traceback only.
                _log.exception("a request failed")
                return _error(500, kbs.error_type("PluginInternalError"), "internal error")

    def _auth(self, _: Request, body: bytes) -> Response:
        session, challenge = self._broker.challenge(body)
        return self._with_cookie(_json(strict_json.encode(challenge)), session)

    def _attest(self, request: Request, body: bytes) -> Response:
        session, token = self._broker.attest(request.cookies.get(kbs.SESSION_COOKIE), body)
        return self._with_cookie(_json(strict_json.encode(kbs.TokenAnswer(token=token))), session)

    def _with_cookie(self, response: Response, session: Session) -> Response:
        """No Path: clients must use the default one, `/kbs/v0`, as with the upstream server.

        `Expires` is a hint in the time of day, for the client; what counts is the sessions' own clock.
        """
        expires = formatdate(time.time() + self._broker.sessions.remaining_seconds(session), usegmt=True)
        response.headers["Set-Cookie"] = f"{kbs.SESSION_COOKIE}={session.id}; Expires={expires}"
        return response

    def _get_resource(self, request: Request, _: bytes) -> Response:
        guest = self._broker.guest(request.cookies.get(kbs.SESSION_COOKIE), _bearer(request))
        return _json(self._broker.resource(guest, _resource_path(request)))

    def _put_resource(self, request: Request, body: bytes) -> Response:
        self._check_admin(request)
        self._broker.put_resource(_ADMIN, _resource_path(request), Secret(body))
        return Response(status_code=200)

    def _delete_resource(self, request: Request, _: bytes) -> Response:
        self._check_admin(request)
        self._broker.delete_resource(_ADMIN, _resource_path(request))
        return Response(status_code=200)

    def _policy(self, request: Request, _: bytes) -> Response:
        """Stock tools set their policies by these calls. Ours is not in Rego and never comes from the network."""
        self._check_admin(request)
        raise errors.InvalidInput(
            "policy",
            "this broker evaluates no Rego and takes no policy by the network: its rules are the file policy.toml in its "
            "directory (`sealed-local broker policy check`). Nothing was changed",
        )

    def _check_admin(self, request: Request) -> None:
        try:
            self._admin.check(_bearer(request))
        except errors.NotReleased as error:
            peer = request.client.host if request.client else "?"
            subject = request.path_params.get("path", _path(request))
            self._broker.refuse_administration(subject, f"{request.method} from {peer}: {error}")
            raise

    def _volume(self, request: Request, body: bytes) -> Response:
        # Never by a bearer token: see `Broker.caller`.
        caller = self._broker.caller(request.cookies.get(kbs.SESSION_COOKIE))
        volume_id, action = request.path_params["volume_id"], request.path_params["action"]
        with log.context(volume_id=volume_id[:_LONGEST_IN_LOG], guest=caller.guest.name):
            try:
                response = _json(self._broker.volume(caller, volume_id, action, body))
                _log.info("register", extra={"action": action})
            except errors.Unavailable:
                raise
            except SealedLocalError as error:
                response = _sealed_refusal(caller.guest, action, error)
            return self._signed(request, response)

    def _lease(self, request: Request, body: bytes) -> Response:
        """Signed also when refused: a proxy must not be able to tell a guest that it lost its lease."""
        volume_id, action = request.path_params["volume_id"], request.path_params["action"]
        with log.context(volume_id=volume_id[:_LONGEST_IN_LOG]):
            try:
                response = _json(self._broker.lease(volume_id, action, body))
            except errors.LeaseLost as error:
                _log.info("a lease is lost", extra={"action": action, "why": str(error)})
                response = _refusal("leases", error)
            return self._signed(request, response)

    def _signed(self, request: Request, response: Response) -> Response:
        """The same answer with the broker's signature, for a guest that sent a nonce."""
        nonce = request.headers.get(signed_answers.NONCE_HEADER)
        if nonce is not None:
            response.headers[signed_answers.SIGNATURE_HEADER] = self._broker.issuer.sign_answer(
                path=_path(request), nonce=nonce, status=response.status_code, body=bytes(response.body)
            )
        return response

    async def _page(self, _: Request) -> Response:
        return Response(self._metrics.page(), headers={"Content-Type": PAGE_TYPE})


async def _limited_body(request: Request, limit: int) -> bytes | None:
    """The whole body, None when it is longer; never more than that is held."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def _sealed_refusal(guest: Guest, action: str, error: SealedLocalError) -> Response:
    """An error about a volume, for the guest alone. Whoever holds the session and not the guest's key must not learn the
    volume's state by it, so `open`, which needs no ticket, has one status for all.
    """
    status = 403 if action == "open" else _status_of(error)
    body = volumes_api.seal_error(guest.key, error)
    _log.info("refused", extra={"status": status, "why": str(error)})
    return _error(status, body.type, body.detail)


def _status_of(error: SealedLocalError) -> int:
    return next((status for kind, status in _STATUS_OF if isinstance(error, kind)), 500)


def _refusal(name: str, error: SealedLocalError) -> Response:
    """An error as the protocol of its endpoint shows it."""
    if isinstance(error, NotAttested):
        return _error(401, kbs.error_type("TokenNotFound"), str(error))
    if name in ("auth", "attest"):
        status = 503 if isinstance(error, errors.Unavailable) else 401
        kind = "SerdeError" if isinstance(error, errors.InvalidInput) else "AttestationError"
        return _error(status, kbs.error_type(kind), str(error))
    status = _status_of(error)
    if name in ("volumes", "leases"):
        body = volumes_api.encode_error(error)
        return _error(status, body.type, body.detail)
    if name in _OF_THE_ADMIN and isinstance(error, errors.NotReleased):
        return _error(401, kbs.error_type("AdminAuthAccess"), str(error))
    return _error(status, kbs.error_type(_KBS_NAME_OF.get(status, "PluginInternalError")), str(error))


def _error(status: int, kind: str, detail: str) -> Response:
    return _json(strict_json.encode(kbs.ErrorBody(type=kind, detail=detail)), status)


async def _unknown_path(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, kbs.error_type("InvalidRequestPath"), f"{request.method} {_path(request)} is not offered")


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status_code=status, media_type="application/json", headers={"Cache-Control": "no-store"})


def _path(request: Request) -> str:
    """As it was asked for. In `request.url` line ends and tabs are left out of it, so that it can be another one's."""
    return str(request.scope["path"])


def _bearer(request: Request) -> str | None:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def _resource_path(request: Request) -> kbs.ResourcePath:
    """One stock tool puts a slash too many before a path that was given to it without a scheme."""
    return kbs.ResourcePath.parse(request.path_params["path"].removeprefix("/"))
