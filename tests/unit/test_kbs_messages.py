"""Messages of the KBS protocol: the published vectors, and clear words for wrong input."""

import hashlib
import json

import pytest
import rfc8785

from csi.core.errors import InvalidInput
from csi.kbs import init_data, jwk, strict_json
from csi.kbs import messages as kbs

KEY = jwk.EcJwk(
    crv="P-256",
    alg="ECDH-ES+A256KW",
    x="MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    y="4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
)
RUNTIME = kbs.RuntimeData(nonce="AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", tee_pubkey=KEY)
PRIMARY = "8a6244441b1b1171b3a1d56a693d4ce116c1f9ca1ae558bc5f59d46dada54cf49e92a361ab2472c434652fed5887f16d"


def test_canonical_json_vector_of_upstream() -> None:
    text = rfc8785.dumps({"b": 1, "a": "test", "c": {"d": "e"}})
    digest = "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
    assert hashlib.sha384(text).hexdigest() == digest


def test_a_sample_guests_version_is_a_word_because_its_session_keeps_it() -> None:
    assert strict_json.convert({"svn": "1" * 100}, kbs.SampleEvidence, "evidence").svn == "1" * 100
    with pytest.raises(InvalidInput, match=r"evidence\.svn"):
        strict_json.convert({"svn": "1" * 101}, kbs.SampleEvidence, "evidence")


def test_runtime_digest_vector() -> None:
    assert kbs.runtime_digest(RUNTIME).hex() == PRIMARY


def test_device_digest_vector() -> None:
    digest = "90df2d9286ca24c8a886cb47e5ca7eb5f81250b2bf3cae2adb51d1978b49690ab9d4efe1c17385028f91f83d3fef0193"
    assert kbs.device_digest(RUNTIME).hex() == digest


def test_sample_evidence_vector() -> None:
    expected = "imJERBsbEXGzodVqaT1M4RbB+coa5Vi8X1nUba2lTPSekqNhqyRyxDRlL+1Yh/Ft"
    assert kbs.sample_evidence(bytes.fromhex(PRIMARY)) == kbs.SampleEvidence(svn="1", report_data=expected)


def test_extra_members_of_a_key_do_not_enter_the_hash() -> None:
    text = {
        "nonce": RUNTIME.nonce,
        "tee-pubkey": {
            "kty": "EC",
            "crv": KEY.crv,
            "alg": KEY.alg,
            "x": KEY.x,
            "y": KEY.y,
            "kid": "mine",
            "use": "enc",
        },
    }
    decoded = strict_json.decode(json.dumps(text).encode(), kbs.RuntimeData, "runtime-data")
    assert kbs.runtime_digest(decoded).hex() == PRIMARY


def test_empty_additional_evidence_is_hashed_and_not_left_out() -> None:
    assert kbs.runtime_digest(RUNTIME) != kbs.device_digest(RUNTIME)


def test_messages_have_the_members_of_the_protocol() -> None:
    request = kbs.Request(version="0.4.0", tee="sample", extra_params="")
    assert json.loads(strict_json.encode(request)) == {"version": "0.4.0", "tee": "sample", "extra-params": ""}
    attestation = kbs.Attestation(
        init_data=kbs.InitData(format="toml", body="x"),
        runtime_data=RUNTIME,
        tee_evidence=kbs.Evidence(primary_evidence=kbs.sample_evidence(b"")),
    )
    message = json.loads(strict_json.encode(attestation))
    assert set(message) == {"init-data", "runtime-data", "tee-evidence"}
    assert set(message["runtime-data"]) == {"nonce", "tee-pubkey"}
    assert message["tee-evidence"] == {"primary_evidence": {"svn": "1", "report_data": ""}, "additional_evidence": ""}
    assert set(message["runtime-data"]["tee-pubkey"]) == {"kty", "crv", "alg", "x", "y"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "Request"),
        (b"\xff\xfe", "Request"),
        (b"[]", "Request"),
        (b'{"version":"0.4.0","tee":"sample"}', "extra-params"),
        (b'{"version":4,"tee":"sample","extra-params":""}', "Request.version"),
        (b'{"version":"0.4.0","tee":"sample","extra-params":""', "Request"),
        (b'{"version":"0.4.0","tee":"sample","extra-params":' + b"[" * 100_000, "Request"),
    ],
)
def test_wrong_requests_are_refused_by_name(text: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        strict_json.decode(text, kbs.Request, "Request")


@pytest.mark.parametrize("extra", ["", 1, None, {"a": []}])
def test_extra_params_may_be_anything(extra: object) -> None:
    text = json.dumps({"version": "0.4.0", "tee": "sample", "extra-params": extra})
    assert strict_json.decode(text, kbs.Request, "Request").extra_params == extra


@pytest.mark.parametrize(
    "uri", ["kbs:///default/test/key", "kbs+resource:///default/test/key", "kbs://10.0.0.1:8080/default/test/key"]
)
def test_resource_uris_name_three_segments_and_no_host(uri: str) -> None:
    path = kbs.ResourcePath.parse_uri(uri)
    assert (str(path), path.uri) == ("default/test/key", "kbs:///default/test/key")


@pytest.mark.parametrize(
    "uri",
    [
        "default/test/key",
        "http:///default/test/key",
        "kbs+pkcs11:///a/b/c",
        "kbs:///a/b",
        "kbs:///a/b/c/d",
        "kbs:///a//c",
        "kbs:///a/b/.c",
        "kbs:///../b/c",
        "kbs:///a/b/c d",
        "kbs:///a/b/c\n",
        "kbs:///a/b/ä",
        "kbs:///a/b/c?x=1",
    ],
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(InvalidInput, match="resource"):
        kbs.ResourcePath.parse_uri(uri)


def test_init_data_digest_is_over_the_text_as_it_is() -> None:
    text = 'algorithm = "sha256"\nversion = "0.1.0"\n\n[data]\n"aa.toml" = "x"\n'
    parsed = init_data.parse(text)
    assert parsed.digest == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    assert parsed.files == {"aa.toml": "x"}
    assert init_data.parse(text + "\n").digest != parsed.digest


def test_dots_in_values_are_no_long_key() -> None:
    value = "." * 100 + ".".join(["10"] * 100)
    text = f"version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\na = \"{value}\"\nb = '''\n{value}\n# {value}\n'''\n"
    assert init_data.parse(text).files["a"] == value


def test_init_data_longer_than_the_broker_reads_is_refused() -> None:
    init_data.check_size("ä" * 32768)
    with pytest.raises(InvalidInput, match="at most 65536"):
        init_data.check_size("ä" * 32768 + "a")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "version"),
        ('version = "0.2.0"', "version"),
        ('version = "0.1.0"', "algorithm"),
        ('version = "0.1.0"\nalgorithm = "sha-384"', "algorithm"),
        ('version = "0.1.0"\nalgorithm = ["sha384"]', "algorithm"),
        ('version = "0.1.0"\nalgorithm = "sha384"\ndata = 1', "data"),
        ('version = "0.1.0"\nalgorithm = "sha384"\n[data]\na = 1', "data"),
        ("= nonsense", "TOML"),
        ("a = " + "[" * 5000, "deep"),
        ("a = " + "9" * 5000, "TOML"),
        (".".join(["a"] * 16000) + " = 1", "a key of 32 dots"),
        ("[" + " . ".join(["'.'"] * 10000) + "]", "a key of 32 dots"),
        ("a = {" + ".".join(['"."'] * 16000) + " = 1}", "a key of 32 dots"),
        ("a = {b = 1, " + ".".join(["a"] * 32000) + " = 1}", "a key of 32 dots"),
    ],
)
def test_wrong_init_data_is_refused_by_name(text: str, field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        init_data.parse(text)
