"""The broker keeps the KBS protocol 0.4.0 as stock guests need it, over real TLS, seen by a client that shares no code."""

import base64
import http.client
import json
import re
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import jwcrypto.jwk
import jwcrypto.jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.parser import text_string_to_metric_families

from csi.broker.app import Admin
from csi.core.errors import NotReleased
from csi.core.secret import Secret
from csi.kbs import init_data
from csi.kbs import messages as kbs
from tests.fakes.broker import INIT_DATA, OTHER_INIT_DATA, RunningBroker, running_broker
from tests.fakes.rust_shaped_client import KbsError, ResourceNotFound, RustShapedClient

SECRET = b"shhhhhhh\n"
PATH = "default/test/secret"
_SESSION_SECONDS = 300
ERRORS = "https://github.com/confidential-containers/kbs/errors/"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker")) as running:
        running.broker.put_resource("operator", kbs.ResourcePath.parse(PATH), Secret(SECRET))
        yield running


def ca(broker: RunningBroker) -> str:
    return broker.directory.certificate("ca").read_text()


@pytest.fixture
def client(broker: RunningBroker) -> Iterator[RustShapedClient]:
    client = RustShapedClient(broker.url, ca(broker), init_data=INIT_DATA)
    yield client
    client.close()


KEYS: dict[str, PrivateKeyTypes] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA": rsa.generate_private_key(public_exponent=65537, key_size=2048),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_stock_guest_gets_its_resource(broker: RunningBroker, kind: str) -> None:
    client = RustShapedClient(broker.url, ca(broker), key=KEYS[kind], init_data=INIT_DATA)
    assert client.get(PATH) == SECRET
    assert client.get(PATH) == SECRET
    assert client.handshakes == 1
    client.close()


def test_a_stock_guest_gets_its_resource_with_a_token(client: RustShapedClient) -> None:
    token = client.handshake()
    assert client.get_with_token(PATH, token) == SECRET


def test_what_is_missing_is_not_found_without_another_attestation(client: RustShapedClient) -> None:
    client.handshake()
    with pytest.raises(ResourceNotFound):
        client.get("default/test/other")
    assert client.handshakes == 1


def test_what_is_denied_is_told_once(client: RustShapedClient) -> None:
    client.handshake()
    with pytest.raises(KbsError, match="PolicyDeny") as caught:
        client.get("default/prod/secret")
    assert caught.value.status == 403
    assert client.handshakes == 1


@pytest.mark.parametrize("version", ["0.3.0", "0.4.1", "0.4", "", "0.4.0 "])
def test_other_versions_are_refused_with_the_phrase_that_clients_know(client: RustShapedClient, version: str) -> None:
    client.version = version
    with pytest.raises(KbsError) as caught:
        client.handshake()
    assert (caught.value.status, caught.value.kind) == (401, ERRORS + "AttestationError")
    expected = f"KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is {version}"
    assert expected in caught.value.detail


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"version":"0.4.0","tee":"sample"}',
        b'{"version":"0.4.0","extra-params":""}',
        b'{"version":"0.4.0","tee":"sgx","extra-params":""}',
        b'{"version":"0.4.0","tee":"nonsense","extra-params":""}',
    ],
)
def test_other_requests_are_refused_in_json(client: RustShapedClient, body: bytes) -> None:
    answer = client.http.post("/auth", content=body)
    assert answer.status_code == 401
    client.error(answer)


def test_the_cookie_is_as_clients_need_it(client: RustShapedClient) -> None:
    before = int(time.time())
    first = client.http.post("/auth", json={"version": "0.4.0", "tee": "sample", "extra-params": ""})
    cookie = first.headers["Set-Cookie"]
    found = re.fullmatch(r"kbs-session-id=([0-9a-f]{32}); Expires=(.+)", cookie)
    assert found is not None
    end = parsedate_to_datetime(found[2]).timestamp()
    assert before + _SESSION_SECONDS - 1 <= end <= time.time() + _SESSION_SECONDS, "whatever the machine was busy with"
    second = client.http.post("/attest", content=json.dumps(client.attestation(first.json()["nonce"])))
    assert second.headers["Set-Cookie"] == cookie, "its end is not moved by /attest"
    assert first.json()["extra-params"] == ""
    assert len(base64.b64decode(first.json()["nonce"], validate=True)) == 32


def test_a_second_attest_answers_the_same_token(client: RustShapedClient) -> None:
    token = client.handshake()
    answer = client.http.post("/attest", content=b"evidence is not examined again")
    assert answer.json() == {"token": token}


def attest_with(client: RustShapedClient, **changes: Any) -> KbsError:
    with pytest.raises(KbsError) as caught:
        client.handshake(**changes)
    assert caught.value.status == 401
    return caught.value


def test_evidence_for_another_nonce_is_refused(client: RustShapedClient) -> None:
    stale = client.attestation("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    assert "nonce" in attest_with(client, **stale).detail


def test_evidence_for_another_key_is_refused(client: RustShapedClient) -> None:
    # The thief's key under the honest guest's evidence: the report data does not match.
    answer = client.http.post("/auth", json={"version": "0.4.0", "tee": "sample", "extra-params": ""})
    attestation = client.attestation(answer.json()["nonce"])
    client.key = KEYS["P-256"]
    attestation["runtime-data"] = client.attestation(answer.json()["nonce"])["runtime-data"]
    refused = client.http.post("/attest", content=json.dumps(attestation))
    assert refused.status_code == 401
    assert "nonce and key" in client.error(refused)[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"tee-evidence": {"primary_evidence": {}, "additional_evidence": ""}},
        {"tee-evidence": {"primary_evidence": {"svn": "1", "report_data": "%"}, "additional_evidence": ""}},
        {"tee-evidence": {"primary_evidence": {"svn": "1"}, "additional_evidence": '{"nvidia":{}}'}},
        {"tee-evidence": None},
        {"runtime-data": {}},
        {"init-data": {"format": "json", "body": "{}"}},
        {"init-data": {"format": "toml", "body": "nonsense"}},
    ],
)
def test_malformed_evidence_is_refused_in_json(client: RustShapedClient, changes: dict[str, Any]) -> None:
    attest_with(client, **changes)


def test_attest_without_or_with_a_wrong_cookie_is_refused(client: RustShapedClient) -> None:
    attestation = json.dumps(client.attestation("x"))
    for cookie in ("", "kbs-session-id=" + "0" * 32, "kbs-session-id="):
        answer = client.http.post("/attest", content=attestation, headers={"Cookie": cookie})
        assert answer.status_code == 401
        client.error(answer)


def test_a_session_that_has_not_attested_gets_nothing(client: RustShapedClient) -> None:
    client.http.post("/auth", json={"version": "0.4.0", "tee": "sample", "extra-params": ""})
    answer = client.http.get(f"/resource/{PATH}")
    assert (answer.status_code, client.error(answer)[0]) == (401, ERRORS + "TokenNotFound")


def test_another_guest_gets_nothing(broker: RunningBroker) -> None:
    client = RustShapedClient(broker.url, ca(broker), init_data=OTHER_INIT_DATA)
    with pytest.raises(KbsError, match="init_data"):
        client.get(PATH)
    client.close()


def altered(token: str, part: int) -> str:
    parts = token.split(".")
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=="))
    raw[len(raw) // 2] ^= 1
    parts[part] = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return ".".join(parts)


def unsigned(token: str) -> str:
    header = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').rstrip(b"=").decode()
    return f"{header}.{token.split('.')[1]}."


def test_other_tokens_are_refused(client: RustShapedClient) -> None:
    good = client.handshake()
    own_key = jwcrypto.jwk.JWK.generate(kty="EC", crv="P-256")
    claims = base64.urlsafe_b64decode(good.split(".")[1] + "==").decode()
    forged = jwcrypto.jwt.JWT(header={"alg": "ES256", "jwk": own_key.export_public(as_dict=True)}, claims=claims)
    forged.make_signed_token(own_key)
    for token in [
        altered(good, 0),
        altered(good, 1),
        altered(good, 2),
        unsigned(good),
        forged.serialize(),
        "x",
        "..",
        "é",
    ]:
        client.http.cookies.clear()
        answer = client.http.get(f"/resource/{PATH}", headers={"Authorization": f"Bearer {token}".encode()})
        assert (answer.status_code, client.error(answer)[0]) == (401, ERRORS + "TokenNotFound"), token


@pytest.mark.parametrize("action", ["open", "begin-format", "commit-format", "begin-open", "commit-open"])
def test_a_token_does_not_move_the_register(broker: RunningBroker, client: RustShapedClient, action: str) -> None:
    # A guest shows its token to other services. Who saw one could announce generations, and the disk would count as old.
    bearer = {"Authorization": f"Bearer {client.handshake()}"}
    client.http.cookies.clear()
    before = (broker.broker.store.volumes(), len(broker.broker.store.audit_entries()))
    answer = client.http.post(f"/volumes/pvc-1/{action}", json={"profile": "xts"}, headers=bearer)
    assert (answer.status_code, client.error(answer)[0]) == (401, ERRORS + "TokenNotFound")
    client.http.post("/auth", json={"version": "0.4.0", "tee": "sample", "extra-params": ""})
    answer = client.http.post(f"/volumes/pvc-1/{action}", json={"profile": "xts"}, headers=bearer)
    assert answer.status_code == 401, "a session that has not attested adds nothing to a token"
    assert "takes no bearer token" in client.error(answer)[1]
    assert (broker.broker.store.volumes(), len(broker.broker.store.audit_entries())) == before


SLOW_INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n' + ".".join(["a"] * 30_000) + " = 1\n"


def test_init_data_that_takes_long_to_read_is_refused_at_once(client: RustShapedClient) -> None:
    client.init_data = SLOW_INIT_DATA
    began = time.monotonic()
    with pytest.raises(KbsError, match="a key of 32 dots or more"):
        client.handshake()
    assert time.monotonic() - began < 1


def test_init_data_is_bounded(client: RustShapedClient) -> None:
    client.init_data = INIT_DATA + "#" * 65536
    with pytest.raises(KbsError, match="the broker reads at most 65536"):
        client.handshake()


@pytest.mark.parametrize("evidence", [{}, {"svn": "1", "report_data": "AAAA"}])
def test_init_data_is_not_read_before_the_evidence_was_looked_at(
    client: RustShapedClient, evidence: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*_: object) -> None:
        raise AssertionError("init-data of unverified evidence was read")

    monkeypatch.setattr(init_data, "parse", parsed)
    attest_with(client, **{"tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""}})


def test_a_token_ends(broker: RunningBroker, client: RustShapedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    token = client.handshake()
    now = broker.broker.issuer._clock()
    monkeypatch.setattr(broker.broker.issuer, "_clock", lambda: now + 301)
    with pytest.raises(KbsError, match="expired"):
        client.get_with_token(PATH, token)


def test_the_token_is_an_ear_that_other_kbs_can_verify(broker: RunningBroker, client: RustShapedClient) -> None:
    token = client.handshake()
    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    assert (header["typ"], header["alg"], header["jwk"]["alg"], header["jwk"]["crv"]) == (
        "JWT",
        "ES256",
        "ES256",
        "P-256",
    )
    chain = [x509.load_der_x509_certificate(base64.b64decode(item)) for item in header["jwk"]["x5c"]]
    chain[0].verify_directly_issued_by(chain[1])
    assert chain[1] == x509.load_pem_x509_certificate(ca(broker).encode())
    key = jwcrypto.jwk.JWK(**{name: header["jwk"][name] for name in ("kty", "crv", "x", "y")})
    assert key.thumbprint() == jwcrypto.jwk.JWK.from_pyca(chain[0].public_key()).thumbprint()
    claims = json.loads(jwcrypto.jwt.JWT(jwt=token, key=key, algs=["ES256"]).claims)
    assert claims["eat_profile"] == "tag:github.com,2024:confidential-containers/Trustee"
    assert claims["exp"] == claims["iat"] + 300
    assert claims["iss"] == "CoCo-Attestation-Service"
    submod = claims["submods"]["cpu0"]
    assert submod["ear.status"] == "contraindicated", "the sample TEE is affirmed to nobody"
    assert len(submod["ear.trustworthiness-vector"]) == 8
    evidence = submod["ear.veraison.annotated-evidence"]
    assert evidence["runtime_data_claims"]["tee-pubkey"] == {"kty": "EC", **client.jwk()}
    assert evidence["sample"]["launch_digest"] == "abcde"
    assert evidence["init_data_claims"] == {"guest.toml": "volumes allowed"}
    assert submod["ear.trustee.identifiers"] == {"validated": {}}


def shown_in(token: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["submods"]["cpu0"]


def test_the_token_tells_policies_of_others_what_the_measured_init_data_holds(broker: RunningBroker) -> None:
    policy = {"containers": [{"OCI": {"Annotations": {"io.kubernetes.cri.image-name": "docker.io/library/nginx:1"}}}]}
    text = f"{INIT_DATA}\"policy.rego\" = '''\npackage agent_policy\npolicy_data := {json.dumps(policy)}\n'''\n"
    client = RustShapedClient(broker.url, ca(broker), init_data=text)
    submod = shown_in(client.handshake())
    client.close()
    assert submod["ear.veraison.annotated-evidence"]["init_data_claims"] == {
        "guest.toml": "volumes allowed",
        "agent_policy_claims": policy,
    }
    assert submod["ear.trustee.identifiers"] == {"validated": {"container_images": ["docker.io/library/nginx:1"]}}


def test_a_guest_without_init_data_has_no_claims_of_it(broker: RunningBroker) -> None:
    client = RustShapedClient(broker.url, ca(broker))
    submod = shown_in(client.handshake())
    client.close()
    assert "init_data_claims" not in submod["ear.veraison.annotated-evidence"]


def test_a_token_that_shows_the_most_init_data_is_taken(broker: RunningBroker) -> None:
    """Denied by the policy and not as a token: the broker takes back what it gave."""
    text = INIT_DATA + "big = '" + "x" * (init_data.LIMIT_BYTES - len(INIT_DATA) - 9) + "'\n"
    client = RustShapedClient(broker.url, ca(broker), init_data=text)
    token = client.handshake()
    assert len(token) > init_data.LIMIT_BYTES
    with pytest.raises(KbsError) as caught:
        client.get_with_token(PATH, token)
    client.close()
    assert caught.value.status == 403


def test_one_slash_too_many_before_a_path_is_dropped(client: RustShapedClient) -> None:
    assert client.get_with_token(f"/{PATH}", client.handshake()) == SECRET
    with pytest.raises(KbsError, match="400"):
        client.get_with_token(f"//{PATH}", client.handshake())


def test_every_refusal_is_json(broker: RunningBroker, client: RustShapedClient) -> None:
    for method, path in [
        ("GET", "/nonsense"),
        ("PUT", "/auth"),
        ("GET", "/auth"),
        ("GET", "/resource/a/b"),
        ("GET", "/resource/a/b/.c"),
        ("POST", "/resource/a/b/c"),
        ("DELETE", "/resource/a/b/c"),
        ("POST", "/volumes/pvc-1/open"),
        ("POST", "/volumes/pvc-1/nonsense"),
        ("POST", "/attest"),
    ]:
        answer = client.http.request(method, path)
        assert answer.status_code in (400, 401, 404, 405), path
        client.error(answer)


def test_no_answer_is_a_redirect(client: RustShapedClient) -> None:
    for path in ("/auth/", "/attest/", "/resource/default/test/key/", "/volumes/pvc-1/open/"):
        for method in ("GET", "POST"):
            answer = client.http.request(method, path)
            assert 400 <= answer.status_code < 500, path
            client.error(answer)


@pytest.mark.parametrize("authority", ["https://{host}", "HTTPS://{host}", "http://elsewhere.example:1"])
def test_a_request_line_may_hold_the_whole_url(broker: RunningBroker, authority: str) -> None:
    host = broker.url.removeprefix("https://")
    context = ssl.create_default_context(cadata=ca(broker))
    with closing(http.client.HTTPSConnection(host, context=context)) as connection:
        for path, status in (
            ("/healthz", 200),
            ("/kbs/v0/nonsense", 404),
            ("/kbs/v0/resource/default/test/key?x=/y", 401),
        ):
            connection.request("GET", authority.format(host=host) + path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == status, path
            assert b"://elsewhere" not in body
        connection.request("GET", authority.format(host=host))
        assert connection.getresponse().read() != b""


@pytest.mark.parametrize(
    "call", ["resource-policy", "attestation-policy", "reference-value", "resource-policy/default"]
)
def test_a_stock_administrator_is_told_where_the_policy_is(
    broker: RunningBroker, client: RustShapedClient, call: str
) -> None:
    good = {"Authorization": f"Bearer {broker.directory.admin_token.read_text().strip()}"}
    before = broker.directory.policy.read_bytes()
    for method in ("GET", "POST"):
        answer = client.http.request(method, f"/{call}", headers=good)
        assert answer.status_code == 400
        assert "evaluates no Rego" in client.error(answer)[1]
        refused = client.http.request(method, f"/{call}", headers={"Authorization": "Bearer x"})
        assert (refused.status_code, client.error(refused)[0]) == (401, ERRORS + "AdminAuthAccess")
    assert broker.directory.policy.read_bytes() == before


def test_evidence_without_a_session_is_told_apart_from_refused_evidence(client: RustShapedClient) -> None:
    answer = client.http.post("/attest", json={})
    assert (answer.status_code, client.error(answer)[0]) == (401, ERRORS + "TokenNotFound")


ROOM = {"little": 16 * 1024, "for evidence": 512 * 1024, "for resources": 2 * 1024 * 1024}
STRANGERS = {
    "/auth": (413, "SerdeError"),
    "/leases/pvc-1/renew": (413, "SerdeError"),
    "/attest": (401, "TokenNotFound"),
    "/volumes/pvc-1/commit-format": (401, "TokenNotFound"),
    f"/resource/{PATH}": (401, "AdminAuthAccess"),
    "/resource-policy": (401, "AdminAuthAccess"),
}


@pytest.mark.parametrize("path", STRANGERS)
def test_who_has_shown_nothing_has_little_room(client: RustShapedClient, path: str) -> None:
    """Hundreds may do it at a time. Who could have more room hears what is missing for it, not that it was too long: a
    guest whose session has ended attests anew then.
    """
    answer = client.http.post(path, content=b" " * (ROOM["little"] + 1))
    status, kind = STRANGERS[path]
    assert (answer.status_code, client.error(answer)[0]) == (status, ERRORS + kind)


def test_a_long_request_of_a_stranger_is_not_held(client: RustShapedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    monkeypatch.setattr("csi.broker.app.BrokerApp._answer", lambda *arguments: held.append(len(arguments[-1])))
    for path in STRANGERS:
        client.http.post(path, content=b" " * (ROOM["little"] + 1))
    assert held == []


def test_a_session_has_room_for_evidence_and_an_attested_one_for_a_header(client: RustShapedClient) -> None:
    client.http.post("/auth", json={"version": "0.4.0", "tee": "sample", "extra-params": ""})
    for size, kind in ((ROOM["for evidence"], "SerdeError"), (ROOM["for evidence"] + 1, "SerdeError")):
        answer = client.http.post("/attest", content=b" " * size)
        assert answer.status_code == (401 if size == ROOM["for evidence"] else 413)
        assert client.error(answer)[0] == ERRORS + kind
    client.handshake()
    for size, status in ((ROOM["for evidence"], 400), (ROOM["for evidence"] + 1, 413)):
        assert client.http.post("/volumes/pvc-1/commit-format", content=b" " * size).status_code == status


def test_the_administrator_has_room_for_a_resource(broker: RunningBroker, client: RustShapedClient) -> None:
    good = {"Authorization": f"Bearer {broker.directory.admin_token.read_text().strip()}"}
    for size, status in ((ROOM["for resources"], 200), (ROOM["for resources"] + 1, 413)):
        answer = client.http.post("/resource/default/test/long", content=b" " * size, headers=good)
        assert answer.status_code == status


def test_an_administrator_stores_and_destroys_resources(broker: RunningBroker, client: RustShapedClient) -> None:
    token = broker.directory.admin_token.read_text().strip()
    good = {"Authorization": f"Bearer {token}"}
    path = "/resource/default/test/new"
    for bad in ({}, {"Authorization": "Bearer " + "x" * 43}, {"Authorization": f"Basic {token}"}):
        for method in ("POST", "DELETE"):
            answer = client.http.request(method, path, content=b"x", headers=bad)
            assert (answer.status_code, client.error(answer)[0]) == (401, ERRORS + "AdminAuthAccess")
    assert client.http.post(path, content=b"new\n", headers=good).status_code == 200
    assert client.get("default/test/new") == b"new\n"
    assert client.http.delete(path, headers=good).status_code == 200
    with pytest.raises(ResourceNotFound):
        client.get("default/test/new")
    assert client.http.delete(path, headers=good).status_code == 404


def test_refused_administration_is_noted_and_rationed(tmp_path: Path) -> None:
    with running_broker(tmp_path) as broker, closing(RustShapedClient(broker.url, ca(broker))) as client:
        for _ in range(5):
            for method in ("POST", "DELETE"):
                answer = client.http.request(method, f"/resource/{PATH}", headers={"Authorization": "Bearer wrong"})
                assert answer.status_code == 401
        [event] = [entry.event for entry in broker.broker.store.audit_entries()]
        assert (event.actor, event.action, event.subject) == ("unknown", "administration-refused", PATH)
        assert event.detail.startswith("POST from 127.0.0.1: ")
        assert "wrong;" not in event.detail


def test_nobody_administers_without_a_token_file() -> None:
    for bearer in (None, "", "None"):
        with pytest.raises(NotReleased):
            Admin(None).check(bearer)


def test_health_and_metrics_need_no_session(broker: RunningBroker) -> None:
    with httpx2.Client(base_url=broker.url, verify=ssl.create_default_context(cadata=ca(broker))) as http:
        assert http.get("/healthz").text == "ok\n"
        http.post("/kbs/v0/auth")
        assert 'sealed_local_broker_requests_total{request="auth",status="401"}' in http.get("/metrics").text


def test_the_metrics_page_is_read_by_the_librarys_own_parser(broker: RunningBroker, client: RustShapedClient) -> None:
    client.handshake()
    answer = client.http.get(broker.url + "/metrics")
    assert answer.headers["Content-Type"] == CONTENT_TYPE_PLAIN_0_0_4
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    requests = families["sealed_local_broker_requests"]
    assert (requests.type, requests.documentation) == ("counter", "Requests answered.")
    counted = {
        tuple(sample.labels.values()): sample.value for sample in requests.samples if sample.name.endswith("_total")
    }
    assert counted["auth", "200"] >= 1
    assert counted["attest", "200"] >= 1


def test_old_tls_is_refused(broker: RunningBroker) -> None:
    context = ssl.create_default_context(cadata=ca(broker))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    port = int(broker.url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
        context.wrap_socket(raw, server_hostname="127.0.0.1"),
    ):
        pass
