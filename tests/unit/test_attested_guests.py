"""A SEV-SNP guest attests to a broker and is given a resource; each way to cheat is refused with a text of its own.

The chip and its authority are made by the test; everything from the JSON of `/attest` on is what a serving broker does.
"""

import base64
import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from csi.broker.claims import SnpClaims
from csi.broker.service import Broker
from csi.broker.sessions import NotAttested
from csi.broker.verifiers.known import known_verifiers
from csi.broker.verifiers.snp import SnpVerifier
from csi.broker.verifiers.snp_chain import Roots
from csi.core.errors import InvalidInput, NotReleased
from csi.core.secret import Secret
from csi.kbs import init_data, jwk, strict_json
from csi.kbs import messages as kbs
from tests.fakes import amd
from tests.fakes.broker import INIT_DATA, OTHER_INIT_DATA, make_directory

PLATFORM = amd.Platform()
MEASUREMENT = "56" * 48
PATH = kbs.ResourcePath.parse("default/spark/key")
POLICY = f"""
version = 1

[tee.snp.minimum_tcb.genoa]
bootloader = {amd.TCB.bootloader}
tee = {amd.TCB.tee}
snp = {amd.TCB.snp}
microcode = {amd.TCB.microcode}

[[image]]
name = "spark-1"
tee = "snp"
measurement = ["{MEASUREMENT}"]

[[workload]]
name = "spark"
tee = ["snp"]
images = ["spark-1"]
init_data = ["{init_data.parse(INIT_DATA).digest}"]
resources = ["default/spark/*"]
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    directory = make_directory(tmp_path / "broker", POLICY)
    with closing(directory.load_broker({})) as made:
        verifier = SnpVerifier(roots=PLATFORM.roots(), clock=amd.NOW.timestamp)
        made.verifiers = {**made.verifiers, "snp": verifier}
        made.put_resource("operator", PATH, Secret(b"secret"))
        yield made


def host_data(text: str) -> bytes:
    return bytes.fromhex(init_data.parse(text).digest.partition(":")[2])[:32]


@dataclasses.dataclass
class SnpGuest:
    """One guest. What it shows may differ from what its report was made over."""

    broker: Broker
    platform: amd.Platform = PLATFORM
    key: ec.EllipticCurvePrivateKey = dataclasses.field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    shown_init_data: str | None = INIT_DATA
    tee: str = "snp"

    def challenge(self) -> tuple[str, str]:
        body = json.dumps({"version": "0.4.0", "tee": self.tee, "extra-params": ""}).encode()
        session, challenge = self.broker.challenge(body)
        return session.id, challenge.nonce

    def runtime(self, nonce: str, key: ec.EllipticCurvePrivateKey | None = None) -> kbs.RuntimeData:
        x, y = jwk.coordinates((key or self.key).public_key(), "P-256")
        return kbs.RuntimeData(nonce=nonce, tee_pubkey=jwk.EcJwk(crv="P-256", alg="ECDH-ES+A256KW", x=x, y=y))

    def report(self, runtime: kbs.RuntimeData, **changes: Any) -> bytes:
        changes = {"at_0xc0": host_data(INIT_DATA)} | changes
        digest = kbs.runtime_digest(runtime, "").ljust(64, b"\0")
        return self.platform.report(at_0x50=digest, **changes)

    def message(self, runtime: kbs.RuntimeData, report: bytes) -> bytes:
        leaf = {"cert_type": "VCEK", "data": base64.b64encode(amd.der(self.platform.leaf())).decode()}
        evidence = {"attestation_report": base64.b64encode(report).decode(), "cert_chain": [leaf]}
        sent = None if self.shown_init_data is None else kbs.InitData(format="toml", body=self.shown_init_data)
        attestation = kbs.Attestation(
            init_data=sent, runtime_data=runtime, tee_evidence=kbs.Evidence(primary_evidence=evidence)
        )
        return strict_json.encode(attestation)

    def attest(self, **changes: Any) -> str:
        session, nonce = self.challenge()
        runtime = self.runtime(nonce)
        return self.broker.attest(session, self.message(runtime, self.report(runtime, **changes)))[1]

    def resource(self, **changes: Any) -> bytes:
        return self.broker.resource(self.broker.guest(None, self.attest(**changes)), PATH)


def test_the_right_guest_is_given_the_resource_and_its_token_holds_its_claims(broker: Broker) -> None:
    guest = SnpGuest(broker)
    token = guest.attest()
    claims = broker.guest(None, token).claims
    assert isinstance(claims, SnpClaims)
    assert (claims.launch_measurement, claims.init_data) == (MEASUREMENT, init_data.parse(INIT_DATA).digest)
    assert b"secret" not in broker.resource(broker.guest(None, token), PATH)
    payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert payload["submods"]["cpu0"]["ear.status"] == "affirming"


OLD = dataclasses.replace(amd.TCB, snp=amd.TCB.snp - 1)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"at_0x90": b"\x57" * 48}, "image 'spark-1': measurement does not list 5757"),
        ({"at_0x8": 0x30000 | 1 << 19}, "debug is not allowed"),
        ({"at_0x8": 0x30000 | 1 << 18}, "migration_agent may move the guest"),
        ({"at_0x30": b"\x01"}, "vmpl does not list 1"),
        ({"at_0x1f0": amd.tcb_bytes(OLD, PLATFORM.product)}, "(launch TCB) has snp 21, not 22"),
    ],
)
def test_another_guest_gets_a_token_that_affirms_nothing_and_no_resource(
    broker: Broker, changes: dict[str, Any], rule: str
) -> None:
    guest = SnpGuest(broker)
    token = guest.attest(**changes)
    payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert payload["submods"]["cpu0"]["ear.status"] == "contraindicated"
    with pytest.raises(NotReleased) as caught:
        broker.resource(broker.guest(None, token), PATH)
    assert rule in str(caught.value)


def test_a_machine_with_old_firmware_is_refused(broker: Broker) -> None:
    guest = SnpGuest(broker, platform=amd.Platform(certified_tcb=OLD))
    with pytest.raises(NotReleased, match=r"\[tee.snp.minimum_tcb.genoa\] \(reported TCB\) has snp 21, not 22"):
        guest.resource()


def test_init_data_that_was_replaced_after_the_start_is_refused(broker: Broker) -> None:
    with pytest.raises(NotReleased, match="HOSTDATA does not carry the digest of the init-data"):
        SnpGuest(broker, shown_init_data=OTHER_INIT_DATA).attest()


def test_a_guest_started_with_other_init_data_is_refused(broker: Broker) -> None:
    guest = SnpGuest(broker, shown_init_data=OTHER_INIT_DATA)
    with pytest.raises(NotReleased, match="init_data does not list sha384:"):
        guest.resource(at_0xc0=host_data(OTHER_INIT_DATA))


def test_a_guest_that_does_not_show_its_init_data_is_refused(broker: Broker) -> None:
    with pytest.raises(NotReleased, match="a configuration that it does not show"):
        SnpGuest(broker, shown_init_data=None).resource()


def test_a_report_for_another_session_is_refused(broker: Broker) -> None:
    guest = SnpGuest(broker)
    _, first = guest.challenge()
    session, second = guest.challenge()
    runtime, old = guest.runtime(second), guest.runtime(first)
    with pytest.raises(NotReleased, match="does not carry this session's nonce and key"):
        broker.attest(session, guest.message(runtime, guest.report(old)))
    with pytest.raises(NotReleased, match="the nonce is not the one of this session"):
        broker.attest(session, guest.message(old, guest.report(old)))


def test_a_relay_that_puts_its_own_key_in_is_refused(broker: Broker) -> None:
    guest = SnpGuest(broker)
    session, nonce = guest.challenge()
    report = guest.report(guest.runtime(nonce))
    relayed = guest.runtime(nonce, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(NotReleased, match="does not carry this session's nonce and key"):
        broker.attest(session, guest.message(relayed, report))


def test_no_way_down_to_the_sample_tee(broker: Broker) -> None:
    with pytest.raises(NotReleased, match=r"\[tee.sample\] allow = false"):
        SnpGuest(broker, tee="sample").challenge()
    session, nonce = SnpGuest(broker).challenge()
    digest = kbs.runtime_digest(SnpGuest(broker).runtime(nonce), "")
    sample = {"svn": "1", "report_data": base64.b64encode(digest).decode()}
    runtime = SnpGuest(broker).runtime(nonce)
    message = kbs.Attestation(runtime_data=runtime, tee_evidence=kbs.Evidence(primary_evidence=sample))
    with pytest.raises(NotReleased, match="malformed SEV-SNP evidence"):
        broker.attest(session, strict_json.encode(message))


def test_a_test_authority_is_nothing_to_a_broker_as_it_is_served(broker: Broker, tmp_path: Path) -> None:
    broker.verifiers = known_verifiers(make_directory(tmp_path / "other", POLICY).collateral)
    with pytest.raises(NotReleased, match="not signed by an authority of AMD's"):
        SnpGuest(broker).attest()


def test_a_changed_token_is_refused(broker: Broker) -> None:
    head, payload, signature = SnpGuest(broker).attest().split(".")
    changed = base64.urlsafe_b64decode(payload + "==").replace(MEASUREMENT.encode(), b"57" * 48)
    with pytest.raises(NotAttested):
        broker.guest(None, f"{head}.{base64.urlsafe_b64encode(changed).decode().rstrip('=')}.{signature}")


def test_evidence_of_a_test_authority_is_as_good_as_the_sample_tees(broker: Broker) -> None:
    pem = b"".join(
        one.public_bytes(amd.serialization.Encoding.PEM) for one in (PLATFORM.root(), PLATFORM.intermediate())
    )
    broker.verifiers = {"snp": SnpVerifier(roots=Roots.of_tests(pem), clock=amd.NOW.timestamp)}
    with pytest.raises(NotReleased, match=r"\[tee.sample\] allow = false: evidence of a test authority"):
        SnpGuest(broker).resource()
    broker.policy = dataclasses.replace(broker.policy, allow_sample=True)
    token = SnpGuest(broker).attest()
    assert broker.resource(broker.guest(None, token), PATH)
    payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert payload["submods"]["cpu0"]["ear.status"] == "contraindicated"
    with pytest.raises(NotReleased, match=r"image 'spark-1': measurement does not list 57"):
        SnpGuest(broker).resource(at_0x90=b"\x57" * 48)


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nx\n", amd.PEM_OF_NOBODY])
def test_a_test_authority_has_to_be_one(pem: bytes) -> None:
    with pytest.raises(InvalidInput, match="test authority"):
        Roots.of_tests(pem)
