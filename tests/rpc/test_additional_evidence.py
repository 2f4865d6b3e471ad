"""Evidence that is refused though it is bound as the protocol says: of more devices, for another nonce, key or policy."""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.broker import INIT_DATA, RunningBroker, running_broker
from tests.fakes.rust_shaped_client import KbsError, RustShapedClient


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path) as made:
        yield made


@pytest.fixture
def client(broker: RunningBroker) -> Iterator[RustShapedClient]:
    client = RustShapedClient(broker.url, broker.directory.certificate("ca").read_text(), init_data=INIT_DATA)
    yield client
    client.close()


def begin(client: RustShapedClient) -> str:
    """A session; its nonce."""
    answer = client.http.post("/auth", json={"version": "0.4.0", "tee": "sample", "extra-params": ""})
    return str(answer.json()["nonce"])


def attest(client: RustShapedClient, additional: str, **runtime_changes: Any) -> str:
    """An attestation whose report data covers the additional evidence, right in all other respects."""
    message = client.attestation(begin(client))
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


def test_a_tee_that_the_policy_forbids_meanwhile_gets_no_token_for_its_session(
    broker: RunningBroker, client: RustShapedClient
) -> None:
    message = client.attestation(begin(client))
    broker.broker.policy = replace(broker.broker.policy, allow_sample=False)
    answer = client.http.post("/attest", content=json.dumps(message))
    with pytest.raises(KbsError, match="does not accept it"):
        client.raise_401(answer)
