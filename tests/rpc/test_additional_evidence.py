"""Evidence of additional devices is refused though it is bound as the protocol says: nobody here verifies it."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.broker import INIT_DATA, running_broker
from tests.fakes.rust_shaped_client import KbsError, RustShapedClient


@pytest.fixture
def client(tmp_path: Path) -> Iterator[RustShapedClient]:
    with running_broker(tmp_path) as broker:
        client = RustShapedClient(broker.url, broker.directory.certificate("ca").read_text(), init_data=INIT_DATA)
        yield client
        client.close()


def attest(client: RustShapedClient, additional: str, **runtime_changes: Any) -> str:
    """An attestation whose report data covers the additional evidence, right in all other respects."""
    answer = client.http.post("/auth", json={"version": "0.4.0", "tee": "sample", "extra-params": ""})
    message = client.attestation(answer.json()["nonce"])
    message["runtime-data"] |= runtime_changes
    hashed = json.dumps(
        {**message["runtime-data"], "additional-evidence": additional}, sort_keys=True, separators=(",", ":")
    )
    report_data = base64.b64encode(hashlib.sha384(hashed.encode()).digest()).decode()
    message["tee-evidence"] = {
        "primary_evidence": {"svn": "1", "report_data": report_data},
        "additional_evidence": additional,
    }
    answer = client.http.post("/attest", content=json.dumps(message))
    client.raise_401(answer)
    return str(answer.json()["token"])


@pytest.mark.parametrize("additional", ["", "{}"])
def test_none_is_fine_in_both_spellings(client: RustShapedClient, additional: str) -> None:
    assert attest(client, additional)


@pytest.mark.parametrize("additional", ['{"nvidia":{"evidence":"x"}}', "null", "[]", " "])
def test_what_nobody_verifies_is_refused(client: RustShapedClient, additional: str) -> None:
    with pytest.raises(KbsError, match="can't verify evidence of additional devices"):
        attest(client, additional)


def test_evidence_that_is_right_for_another_nonce_is_refused(client: RustShapedClient) -> None:
    with pytest.raises(KbsError, match="the nonce is not the one of this session"):
        attest(client, "", nonce="AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")


@pytest.mark.parametrize(
    "changes", [{"x": "AA"}, {"alg": "none"}, {"crv": "P-1"}], ids=["off the curve", "no encryption", "no such curve"]
)
def test_a_key_that_no_secret_can_be_encrypted_to_is_refused_at_once(
    client: RustShapedClient, changes: dict[str, str]
) -> None:
    with pytest.raises(KbsError, match="tee-pubkey"):
        attest(client, "", **{"tee-pubkey": client.jwk() | changes})
