"""Runs the broker's HTTP application over TLS until SIGTERM or SIGINT, and reloads the policy on SIGHUP."""

import datetime as dt
import hashlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import uvicorn
from cryptography import x509
from starlette.types import ASGIApp

from csi import __version__
from csi.broker import vault
from csi.broker.app import Admin, BrokerApp
from csi.broker.connections import BoundedHandshakes, ImpatientProtocol
from csi.broker.directory import BrokerDirectory
from csi.broker.service import Broker
from csi.core.errors import InvalidInput, SealedLocalError, Unavailable

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 3
"""Requests take milliseconds; what is waited for are idle guests that don't answer the end of their TLS connection."""
_MAX_CONNECTIONS = 512
_BACKLOG = 128
_EXPIRY_WARNING = dt.timedelta(days=60)


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`; IPv6 in brackets."""
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidInput("--listen", f"{text!r} is not HOST:PORT")
    return host, int(port)


def serve(directory: BrokerDirectory, broker: Broker, address: tuple[str, int]) -> None:
    """Serve until told to stop. Requests in flight are finished; the database is closed last."""
    application = BrokerApp(broker, Admin(directory.load_admin_token()))
    vault.read_private(directory.key("server"))
    listener = listen(address)
    server = uvicorn.Server(configure(directory, application.asgi))
    # A change of the log may wait for the database, and the main thread answers health meanwhile.
    reloads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reload")
    _handle_signals(lambda: reloads.submit(reload_policy, directory, broker), server)
    _warn_of_sample(broker)
    _warn_of_expiry(directory)
    host, port = listener.getsockname()[:2]
    _log.info("the broker listens", extra={"address": f"{host}:{port}", "directory": str(directory.root)})
    broker.note("started", f"{host}:{port}", f"version {__version__}, epoch {broker.store.epoch()}")
    try:
        server.run(sockets=[listener])
        _note(broker, "stopped", f"{host}:{port}", "")
    finally:
        listener.close()
        reloads.shutdown()
        broker.close()
    _log.info("the broker has stopped")


def configure(directory: BrokerDirectory, application: ASGIApp) -> uvicorn.Config:
    """uvicorn's settings: TLS 1.2 or newer, bounded headers and connections, our own log."""
    config = uvicorn.Config(
        application,
        ssl_certfile=directory.certificate("server"),
        ssl_keyfile=str(directory.key("server")),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http=ImpatientProtocol,
        loop=f"{BoundedHandshakes.__module__}:{BoundedHandshakes.__qualname__}",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    config.load()
    # It tells of its start and end in its own words; ours say more.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        # For coming back without a whole handshake. A guest attests anew in each of its connections, so it never does.
        config.ssl.num_tickets = 0
    return config


def listen(address: tuple[str, int]) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    # The protocol is named because asyncio turns off Nagle's algorithm only then; with it every answer takes 40 ms more.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(f"can't listen on {address[0]}:{address[1]}: {error.strerror or error}") from error
    return listener


def reload_policy(directory: BrokerDirectory, broker: Broker) -> None:
    """Put the policy file in force; a file that can't be used leaves the old one. Both are noted in the audit log."""
    try:
        broker.policy = directory.load_policy()
        digest = hashlib.sha256(directory.policy.read_bytes()).hexdigest()
    except SealedLocalError as error:
        _log.error("the policy file can't be used, the old policy stays", extra={"why": str(error)})
        _note(broker, "policy-refused", directory.policy.name, str(error))
    except Exception:
        # A mistake in a file must not end the program.
        _log.exception("the policy file can't be used, the old policy stays")
        _note(broker, "policy-refused", directory.policy.name, "see the log")
    else:
        _log.info("the policy was read again")
        _warn_of_sample(broker)
        _note(broker, "policy-loaded", directory.policy.name, f"sha256={digest}")


def _note(broker: Broker, action: str, subject: str, detail: str) -> None:
    try:
        broker.note(action, subject, detail)
    except SealedLocalError as error:
        _log.error("the audit log lacks an entry", extra={"action": action, "why": str(error)})


def _handle_signals(reload: Callable[[], object], server: uvicorn.Server) -> None:
    def hung_up(_: int, __: FrameType | None) -> None:
        reload()

    def stopped(number: int, __: FrameType | None) -> None:
        """Before uvicorn listens to signals itself none may be lost; when it has stopped it raises its own once more."""
        server.should_exit = True
        _log.info("stopping", extra={"signal": signal.Signals(number).name})

    signal.signal(signal.SIGHUP, hung_up)
    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, stopped)


def _warn_of_expiry(directory: BrokerDirectory) -> None:
    """Guests refuse a certificate that has ended, and then no volume opens any more."""
    now = dt.datetime.now(dt.UTC)
    for name in ("ca", "server", "token"):
        end = x509.load_pem_x509_certificate(directory.certificate(name).read_bytes()).not_valid_after_utc
        if end - now < _EXPIRY_WARNING:
            _log.warning(
                "a certificate ends soon: remove it and its key, run `sealed-local broker init` again, and restart",
                extra={"certificate": str(directory.certificate(name)), "ends": end.isoformat()},
            )


def _warn_of_sample(broker: Broker) -> None:
    if broker.policy.allow_sample:
        _log.warning(
            "DEVELOPMENT ONLY: the sample TEE is allowed. It proves nothing: anyone who reaches this broker and knows "
            "the values in its policy gets the secrets"
        )
