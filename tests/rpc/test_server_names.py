"""The guest's TLS against servers that do listen: the pinned authority is not enough, the name must be right, too."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import trustme

from csi.core.errors import Unavailable
from csi.guest.attest.https import HttpsTransport

CA = trustme.CA()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


@contextlib.contextmanager
def listening(name: str, ca: trustme.CA = CA) -> Iterator[int]:
    """The port of a server on 127.0.0.1 with a certificate for `name`, which answers whatever it is asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)

    def serve(listener: socket.socket) -> None:
        # The listener is closed at the end of the test; a client that refuses the certificate breaks off.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(65536)
                    tls.sendall(ANSWER)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def ask(host: str, port: int) -> int:
    transport = HttpsTransport(
        url=f"https://{host}:{port}",
        ca_pem=CA.cert_pem.bytes().decode(),
        timeout_seconds=5,
        max_body_bytes=100,
        sleep=lambda _: None,
    )
    with closing(transport):
        return transport.exchange("GET", "/", None, {}).status


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_pinned_authority_and_the_right_name_are_trusted(name: str) -> None:
    with listening(name) as port:
        assert ask(name, port) == 200


@pytest.mark.parametrize(
    ("name", "asked"),
    [("another.example", "127.0.0.1"), ("another.example", "localhost"), ("127.0.0.2", "127.0.0.1")],
)
def test_another_name_is_not_trusted(name: str, asked: str) -> None:
    with listening(name) as port, pytest.raises(Unavailable, match=r"does not verify.*(mismatch|not valid for)"):
        ask(asked, port)


def test_the_right_name_of_another_authority_is_not_trusted() -> None:
    with listening("127.0.0.1", trustme.CA()) as port, pytest.raises(Unavailable, match="does not verify"):
        ask("127.0.0.1", port)


def test_tls_older_than_1_2_is_not_spoken() -> None:
    transport = HttpsTransport(
        url="https://127.0.0.1:1", ca_pem=CA.cert_pem.bytes().decode(), timeout_seconds=5, max_body_bytes=100
    )
    assert transport._tls.minimum_version is ssl.TLSVersion.TLSv1_2
