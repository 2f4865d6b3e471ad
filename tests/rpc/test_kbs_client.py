"""The guest's client against servers that misbehave: bounded, no redirects, and errors that say what happened."""

import base64
import datetime as dt
import http.server
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from csi.broker import certificates
from csi.core.errors import InvalidInput, NotFound, NotReleased, Refused, SealedLocalError, Unavailable, Unsupported
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.guest.attest.https import HttpsTransport
from csi.guest.attest.kbs_client import BrokerRegister
from csi.guest.broker_settings import BrokerSettings
from csi.guest.derived import ask
from csi.guest.derived import keys as derived_keys
from csi.kbs import jwe, jwk, signed_answers, strict_json, volumes_api
from csi.kbs import messages as kbs
from csi.kbs.claim_name import UNNAMED
from csi.kbs.register import VolumeRecord, VolumeState

Answer = tuple[int, dict[str, str], bytes]
COOKIE = {"Set-Cookie": f"{kbs.SESSION_COOKIE}=abc; Expires=Thu, 01 Jan 2099 00:00:00 GMT"}
CHALLENGE = b'{"nonce":"bm9uY2U=","extra-params":""}'
NONCE = "1e" * 32
ERRORS = "https://github.com/confidential-containers/kbs/errors/"
TICKET = "7c" * 32
SHA512 = b'{"selected-hash-algorithm":"sha512"}'


@dataclass
class Script:
    """What a server answers, by the last part of the path; and what it was asked."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, str, bytes, str]] = field(default_factory=list)
    url: str = ""
    ca_pem: str = ""
    tee_key: jwk.Jwk | None = None
    authority: certificates.Pair | None = None
    signs: bool = True
    nonce: str | None = None
    """Over which nonce it signs; None for the one of the request."""

    def sealed(
        self, record: VolumeRecord, secret: Secret | None = None, share: Secret | None = None
    ) -> Callable[[], Answer]:
        def answer() -> Answer:
            assert self.tee_key is not None
            answer = volumes_api.Answer(
                record=record,
                epoch="0e" * 16,
                secret=None if secret is None else volumes_api.text_of(secret),
                ticket=TICKET,
                share=None if share is None else volumes_api.text_of(share),
            )
            return 200, {}, jwe.encrypt(self.tee_key, volumes_api.encode_answer(answer))

        return answer


def token_of(certificate: x509.Certificate) -> bytes:
    der = certificate.public_bytes(serialization.Encoding.DER)
    header = json.dumps({"alg": "ES256", "jwk": {"x5c": [base64.b64encode(der).decode()]}}).encode()
    return json.dumps({"token": f"{base64.urlsafe_b64encode(header).decode().rstrip('=')}.x.y"}).encode()


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up in the middle is what some tests are about."""


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script(answers={"auth": (200, COOKIE, CHALLENGE), "attest": (200, {}, b'{"token":"x"}')})

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            script.requests.append((self.command, self.path, body, self.headers.get("Cookie", "")))
            action = self.path.rpartition("/")[2]
            if action == "attest":
                script.tee_key = strict_json.decode(body, kbs.Attestation, "Attestation").runtime_data.tee_pubkey
            answer = script.answers[action]
            status, headers, content = answer() if callable(answer) else answer
            nonce = self.headers.get(signed_answers.NONCE_HEADER)
            if nonce is not None and script.signs:
                headers = headers | {
                    signed_answers.SIGNATURE_HEADER: signed_answers.sign(
                        signer.key, path=self.path, nonce=script.nonce or nonce, status=status, body=content
                    )
                }
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" in headers:
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    ca = trustme.CA()
    authority = certificates.parse(ca.cert_pem.bytes(), ca.private_key_pem.bytes(), "ca")
    script.authority = authority
    signer = certificates.token_signer(authority, dt.datetime.now(dt.UTC))
    script.answers["attest"] = (200, {}, token_of(signer.certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    httpd = Server(("127.0.0.1", 0), Handler)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url, script.ca_pem = f"https://127.0.0.1:{httpd.server_address[1]}", ca.cert_pem.bytes().decode()
    yield script
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def guest(server: Script) -> Iterator[BrokerRegister]:
    settings = BrokerSettings(
        url=server.url, ca_pem=server.ca_pem, init_data="", allow_sample=True, timeout_seconds=5.0
    )
    guest = BrokerRegister(settings, sleep=lambda _: None)
    yield guest
    guest.close()


ALLOCATED = VolumeRecord(volume_id="pvc-1", key_version=1, profile=Profile.XTS, state=VolumeState.ALLOCATED, revision=1)


def error(kind: str, detail: str = "why") -> bytes:
    return json.dumps({"type": kind, "detail": detail}).encode()


def test_the_handshake_is_as_the_protocol_says(server: Script, guest: BrokerRegister) -> None:
    server.answers["open"] = server.sealed(ALLOCATED, Secret(b"s" * 32))  # type: ignore[assignment]
    assert guest.open("pvc-1", Profile.XTS) == (ALLOCATED, Secret(b"s" * 32))
    assert [(method, path) for method, path, _, _ in server.requests] == [
        ("POST", "/kbs/v0/auth"),
        ("POST", "/kbs/v0/attest"),
        ("POST", "/kbs/v0/volumes/pvc-1/open"),
    ]
    request = json.loads(server.requests[0][2])
    assert (request["version"], request["tee"]) == ("0.4.0", "sample")
    assert "sha384" in request["extra-params"]["supported-hash-algorithms"]
    attestation = json.loads(server.requests[1][2])
    assert attestation["init-data"] is None
    assert attestation["runtime-data"]["nonce"] == "bm9uY2U="
    assert set(attestation["runtime-data"]["tee-pubkey"]) == {"kty", "alg", "crv", "x", "y"}
    assert [cookie for _, _, _, cookie in server.requests] == ["", "kbs-session-id=abc", "kbs-session-id=abc"]


def test_a_volume_id_is_one_segment_of_the_path(server: Script, guest: BrokerRegister) -> None:
    for bad in ("a/b", "a?b", "a%2fb", "a b", "", ".", "a\r\nX: y", "ä", "x" * 129):
        with pytest.raises(InvalidInput, match="volume id"):
            guest.open(bad, Profile.XTS)
    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "raised", "said"),
    [
        ((404, {}, error(ERRORS + "PluginNotFound")), Refused, r"volume pvc-1: this server keeps no register.*\(why\)"),
        ((404, {}, error(ERRORS + "InvalidRequestPath")), NotFound, "why"),
        ((403, {}, error(ERRORS + "PolicyDeny")), NotReleased, "why"),
        ((401, {}, error(ERRORS + "PolicyDeny")), NotReleased, "^volume pvc-1: why$"),
        ((401, {}, error(ERRORS + "TokenNotFound")), Unavailable, r"loses this guest.s sessions: .*why \(3 tries\)"),
        ((401, {}, b"<html>"), NotReleased, "HTTP status 401"),
        ((418, {}, b"<html>"), Refused, "HTTP status 418"),
        ((302, {"Location": "https://127.0.0.1:1/"}, b""), Refused, "HTTP status 302"),
        ((500, {}, b"oops"), Unavailable, "HTTP status 500"),
        ((503, {}, b""), Unavailable, "6 tries"),
        ((409, {}, error("urn:sealed-local:error:Refused")), Refused, "why"),
        ((400, {}, error("urn:sealed-local:error:InvalidInput", "field: problem")), InvalidInput, "field: problem"),
        ((400, {}, error("urn:sealed-local:error:InvalidInput", "odd")), InvalidInput, "odd"),
        ((400, {}, error("urn:sealed-local:error:KeyboardInterrupt")), Refused, "why"),
        ((200, {}, b"{}"), Unavailable, "can't be used: JWE"),
        ((200, {}, b"x" * (5 * 1024 * 1024)), Unavailable, "longer than"),
    ],
)
def test_odd_answers_become_errors_that_say_what_happened(
    server: Script, guest: BrokerRegister, answer: Answer, raised: type[SealedLocalError], said: str
) -> None:
    server.answers["open"] = answer
    with pytest.raises(raised, match=said):
        guest.open("pvc-1", Profile.XTS)


def test_answers_for_something_else_are_refused(server: Script, guest: BrokerRegister) -> None:
    for record, secret, said in [
        (replace(ALLOCATED, volume_id="pvc-2"), Secret(b"s" * 32), "pvc-2 instead of pvc-1"),
        (replace(ALLOCATED, profile=Profile.NONE), Secret(b"s" * 32), "profile none"),
        (ALLOCATED, None, "without the secret or the ticket"),
    ]:
        server.answers["open"] = server.sealed(record, secret)  # type: ignore[assignment]
        with pytest.raises(Refused, match=said):
            guest.open("pvc-1", Profile.XTS)
    server.answers["open"] = server.sealed(ALLOCATED, Secret(b"short"))  # type: ignore[assignment]
    with pytest.raises(Unavailable, match="5 bytes instead of 32"):
        guest.open("pvc-1", Profile.XTS)
    server.answers["open"] = server.sealed(ALLOCATED, Secret(b"s" * 32))  # type: ignore[assignment]
    guest.open("pvc-1", Profile.XTS)
    server.answers["lease"] = server.sealed(ALLOCATED)  # type: ignore[assignment]
    with pytest.raises(Refused, match="gave no lease"):
        guest.take_lease(ALLOCATED, "1e" * 32)
    with pytest.raises(Refused, match="the lease of volume pvc-1 was not taken"):
        guest.begin_format(ALLOCATED, nonce=NONCE, payload_bytes=4096)
    guest.hold_lease("pvc-1", "1e" * 32)
    server.answers["begin-format"] = server.sealed(ALLOCATED)  # type: ignore[assignment]
    with pytest.raises(Refused, match="no permission to format"):
        guest.begin_format(ALLOCATED, nonce=NONCE, payload_bytes=4096)


@pytest.mark.parametrize(
    ("step", "answer", "expected"),
    [
        ("auth", (401, {}, error("x", "version")), (NotReleased, "refuses to talk to this guest: version")),
        ("auth", (200, {}, CHALLENGE), (Unavailable, "no kbs-session-id cookie")),
        ("auth", (200, COOKIE, b'{"nonce":"x"}'), (Unavailable, "Challenge.*extra-params")),
        ("auth", (200, COOKIE, CHALLENGE.replace(b'""', b'{"selected-hash-algorithm":1}')), (Unsupported, "hash 1")),
        ("auth", (200, COOKIE, CHALLENGE.replace(b'""', SHA512)), (Unsupported, "sha512")),
        ("attest", (401, {}, error("x", "evidence")), (NotReleased, "this guest's evidence: evidence$")),
    ],
)
def test_a_handshake_that_fails_says_why(
    server: Script, guest: BrokerRegister, step: str, answer: Answer, expected: tuple[type[SealedLocalError], str]
) -> None:
    server.answers[step] = answer
    with pytest.raises(expected[0], match=expected[1]):
        guest.open("pvc-1", Profile.XTS)


@pytest.mark.parametrize("name", ["PluginInternalError", "PolicyDeny", "JweError", "AttestationError", "TokenNotFound"])
def test_a_handshake_is_repeated_only_where_the_session_may_be_over(
    server: Script, guest: BrokerRegister, name: str
) -> None:
    server.answers["key"] = (401, {}, error(ERRORS + name))
    with pytest.raises((NotFound, NotReleased, Unavailable)):
        guest.get_resource("kbs:///default/test/key")
    asked = Counter(path.rpartition("/")[2] for _, path, _, _ in server.requests)
    tries = 3 if name in ("AttestationError", "TokenNotFound") else 1
    assert asked == {"auth": tries, "attest": tries, "key": tries}


def test_refused_evidence_is_shown_once_and_a_lost_session_is_begun_again(
    server: Script, guest: BrokerRegister
) -> None:
    server.answers["attest"] = (401, {}, error(ERRORS + "AttestationError", "debug"))
    with pytest.raises(NotReleased, match="debug"):
        guest.get_resource("kbs:///default/test/key")
    assert [path for _, path, _, _ in server.requests] == [f"{kbs.PREFIX}/auth", f"{kbs.PREFIX}/attest"]
    server.answers["attest"] = (401, {}, error(ERRORS + "TokenNotFound", "no session"))
    with pytest.raises(Unavailable, match=r"no session \(3 tries\)"):
        guest.get_resource("kbs:///default/test/key")


def test_a_resource_that_upstream_does_not_have_is_told_as_missing(server: Script, guest: BrokerRegister) -> None:
    server.answers["key"] = (401, {}, error(ERRORS + "PluginInternalError", "Plugin Internal Error"))
    with pytest.raises(NotFound, match=r"resource default/test/key: Plugin Internal Error \(upstream says this where"):
        guest.get_resource("kbs:///default/test/key")


def test_a_volume_is_not_looked_for_at_a_server_that_has_resources_alone(server: Script, guest: BrokerRegister) -> None:
    server.answers["attest"] = (200, {}, b'{"token":"x"}')
    server.signs = False
    server.answers["open"] = (404, {}, error(ERRORS + "PluginNotFound", "Plugin not found: volumes"))
    with pytest.raises(Refused, match=r"keeps no register of volumes.*Plugin not found: volumes.*broker\.url"):
        guest.open("pvc-1", Profile.XTS)


@pytest.mark.parametrize("chosen", ['"sha384"', '"SHA384"'])
def test_the_default_hash_may_be_selected(server: Script, guest: BrokerRegister, chosen: str) -> None:
    text = f'{{"nonce":"x","extra-params":{{"selected-hash-algorithm":{chosen}}}}}'
    server.answers["auth"] = (200, COOKIE, text.encode())
    server.answers["open"] = server.sealed(ALLOCATED, Secret(b"s" * 32))  # type: ignore[assignment]
    guest.open("pvc-1", Profile.XTS)


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(server: Script, guest: BrokerRegister) -> None:
    whole = server.sealed(ALLOCATED, Secret(b"s" * 32))
    breaks = iter([True, True, False])

    def breaking() -> Answer:
        status, headers, content = whole()
        return (status, headers | {"Content-Length": str(len(content) + 10)}, content) if next(breaks) else whole()

    server.answers["open"] = breaking  # type: ignore[assignment]
    assert guest.open("pvc-1", Profile.XTS)[0] == ALLOCATED
    assert [path for _, path, _, _ in server.requests].count("/kbs/v0/volumes/pvc-1/open") == 3


def test_an_answer_that_drips_is_given_up(server: Script) -> None:
    ticks = iter(range(0, 1000, 4))
    transport = HttpsTransport(
        url=server.url,
        ca_pem=server.ca_pem,
        timeout_seconds=5,
        max_body_bytes=10**9,
        sleep=lambda _: None,
        clock=lambda: float(next(ticks)),
    )
    server.answers["slow"] = (200, {}, b"x" * 10**6)
    with pytest.raises(Unavailable, match="not complete after 5 s"):
        transport.exchange("GET", "/slow", None, {})
    transport.close()


def test_the_environment_names_no_proxy_and_no_authority(
    server: Script, guest: BrokerRegister, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.answers["open"] = server.sealed(ALLOCATED, Secret(b"s" * 32))  # type: ignore[assignment]
    guest.open("pvc-1", Profile.XTS)


def test_an_answer_that_the_broker_has_not_signed_for_this_request_is_refused(
    server: Script, guest: BrokerRegister
) -> None:
    """Whoever ends TLS in front of the broker can neither make an answer up nor show an old one again."""
    server.answers["open"] = server.sealed(ALLOCATED, Secret(b"s" * 32))  # type: ignore[assignment]
    guest.open("pvc-1", Profile.XTS)
    server.signs = False
    with pytest.raises(Unavailable, match="the answer is not signed"):
        guest.open("pvc-1", Profile.XTS)
    server.signs, server.nonce = True, "00" * 32
    with pytest.raises(Unavailable, match="not the broker's over this request and answer"):
        guest.open("pvc-1", Profile.XTS)


def test_errors_are_signed_like_answers(server: Script, guest: BrokerRegister) -> None:
    server.answers["open"] = (409, {}, error("urn:sealed-local:error:Busy", "another guest"))
    server.signs = False
    with pytest.raises(Unavailable, match="the answer is not signed"):
        guest.open("pvc-1", Profile.XTS)


def test_a_server_without_a_signer_serves_resources_and_no_volumes(server: Script, guest: BrokerRegister) -> None:
    server.answers["attest"] = (200, {}, b'{"token":"x"}')
    server.answers["open"] = server.sealed(ALLOCATED, Secret(b"s" * 32))  # type: ignore[assignment]
    with pytest.raises(Unavailable, match="tells who signs its answers"):
        guest.open("pvc-1", Profile.XTS)


@pytest.mark.parametrize("whose", ["of another authority", "of a TLS server", "the authority's own"])
def test_a_certificate_that_is_not_for_this_signs_nothing(server: Script, guest: BrokerRegister, whose: str) -> None:
    now = dt.datetime.now(dt.UTC)
    pinned = server.authority
    assert pinned is not None
    made = {
        "of another authority": certificates.token_signer(certificates.authority(now), now),
        "of a TLS server": certificates.server(pinned, ["127.0.0.1"], now),
        "the authority's own": pinned,
    }
    server.answers["attest"] = (200, {}, token_of(made[whose].certificate))
    with pytest.raises(Unavailable, match=r"token\.x5c"):
        guest.open("pvc-1", Profile.XTS)


ROOT = "kbs:///default/sealed-local/root"


def test_a_trustee_that_has_the_root_gives_a_volumes_keys_for_one_handshake(
    server: Script, guest: BrokerRegister
) -> None:
    # Trustee's token has no certificate of ours, and it signs nothing.
    server.answers["attest"], server.signs = (200, {}, b'{"token":"x"}'), False

    def answer() -> Answer:
        assert server.tee_key is not None
        return 200, {}, jwe.encrypt(server.tee_key, Secret(b"r" * 32))

    server.answers["root"] = answer  # type: ignore[assignment]
    got = ask.ask(guest, ROOT, "pvc-1", UNNAMED)
    assert got == derived_keys.derive(Secret(b"r" * 32), "pvc-1", UNNAMED)
    assert [(method, path) for method, path, _, _ in server.requests] == [
        ("POST", "/kbs/v0/auth"),
        ("POST", "/kbs/v0/attest"),
        ("GET", "/kbs/v0/resource/default/sealed-local/root"),
    ]


@pytest.mark.parametrize(
    ("name", "raised", "said"),
    [
        ("PluginInternalError", NotFound, f"broker.root is {ROOT}, and volume pvc-1 can't be opened without it"),
        ("PolicyDeny", NotReleased, "default/sealed-local/root: why"),
    ],
)
def test_a_trustee_that_does_not_give_the_root_is_told_as_such(
    server: Script, guest: BrokerRegister, name: str, raised: type[SealedLocalError], said: str
) -> None:
    server.answers["root"] = (401, {}, error(ERRORS + name))
    with pytest.raises(raised, match=said):
        ask.ask(guest, ROOT, "pvc-1", UNNAMED)
