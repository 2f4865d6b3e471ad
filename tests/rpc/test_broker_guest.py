"""The guest's client against the real broker, over TLS on loopback: what a guest gets, and what it never gets."""

import base64
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec

from csi.broker import rules as register
from csi.broker.audit import Event
from csi.broker.first_policy import POLICY_TEXT
from csi.broker.main import main
from csi.core.errors import Busy, InvalidInput, LeaseLost, NotFound, NotReleased, Refused, Unavailable
from csi.core.header_digest import header_digest
from csi.core.sealed import HEADER_BYTES, HEADER_PARTS_BYTES, Profile
from csi.core.secret import Secret
from csi.guest.attest.kbs_client import BrokerRegister
from csi.kbs import init_data, jwk
from csi.kbs import messages as kbs
from csi.kbs.register import VolumeRecord, VolumeState
from tests.fakes.broker import (
    INIT_DATA,
    OTHER_INIT_DATA,
    POLICY,
    RunningBroker,
    leased,
    running_broker,
    without_lease,
)

NONCE, OTHER, THIRD = "1e" * 32, "0f" * 32, "3d" * 32
HEADER = b"header".ljust(HEADER_BYTES, b"\0")
DIGEST = header_digest(HEADER).hex()
RESOURCE = kbs.ResourcePath.parse("default/test/secret")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path) as running:
        yield running


def formatted(guest: BrokerRegister, volume: str = "pvc-1") -> VolumeRecord:
    record = leased(guest, guest.open(volume, Profile.XTS)[0])
    record, _ = guest.begin_format(record, nonce=NONCE, payload_bytes=4096)
    return guest.commit_format(record, nonce=NONCE, header=HEADER, payload_bytes=4096)


def test_a_volume_lives_through_two_guests(broker: RunningBroker) -> None:
    first = broker.guest()
    record, secret = first.open("pvc-1", Profile.XTS)
    assert record.state is VolumeState.ALLOCATED
    assert len(secret.reveal()) == 32
    active = formatted(first)
    assert (active.state, active.generation, active.header_sha256) == (VolumeState.ACTIVE, 1, DIGEST)
    second = broker.guest()
    seen, same = second.open("pvc-1", Profile.XTS)
    assert (seen, same) == (active, secret)
    with pytest.raises(Busy, match="is open in another guest"):
        leased(second, seen)
    without_lease(broker, "pvc-1")
    record = second.begin_open(leased(second, seen), nonce=THIRD, generation=2)
    assert second.commit_open(record, nonce=THIRD, generation=2).generation == 2
    # The first guest read the record before that.
    with pytest.raises(LeaseLost, match="another guest has opened the volume"):
        first.begin_open(active, nonce=OTHER, generation=2)


def test_each_volume_has_a_secret_of_its_own(broker: RunningBroker) -> None:
    guest = broker.guest()
    assert guest.open("pvc-1", Profile.XTS)[1] != guest.open("pvc-2", Profile.XTS)[1]


def test_guests_that_come_first_at_the_same_time_get_one_secret(broker: RunningBroker) -> None:
    secrets: list[Secret] = []
    guests = [broker.guest() for _ in range(6)]
    threads = [
        threading.Thread(target=lambda one=one: secrets.append(one.open("pvc-1", Profile.XTS)[1])) for one in guests
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(secrets) == len(guests)
    assert all(secret == secrets[0] for secret in secrets)


def test_one_of_many_guests_gets_the_permission_to_format(broker: RunningBroker) -> None:
    guests = [broker.guest() for _ in range(6)]
    records = [guest.open("pvc-1", Profile.XTS)[0] for guest in guests]
    won: list[int] = []

    def race(number: int) -> None:
        try:
            record = leased(guests[number], records[number])
            guests[number].begin_format(record, nonce=f"{number}" * 64, payload_bytes=4096)
        except Busy:
            return
        won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(len(guests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_errors_arrive_with_their_class(broker: RunningBroker) -> None:
    guest = broker.guest()
    active = formatted(guest)
    with pytest.raises(Refused, match="never formatted again"):
        guest.begin_format(active, nonce=OTHER, payload_bytes=4096)
    with pytest.raises(InvalidInput, match=r"begin-open.nonce"):
        guest.begin_open(active, nonce="short", generation=2)
    with pytest.raises(InvalidInput, match=r"payload_bytes"):
        guest.begin_format(active, nonce=OTHER, payload_bytes=4097)
    with pytest.raises(InvalidInput, match="volume id"):
        guest.open("pvc-/../x", Profile.XTS)
    with pytest.raises(NotReleased, match=r"volume other is not released.*none of its patterns"):
        guest.open("other", Profile.XTS)
    with pytest.raises(InvalidInput, match="profile"):
        guest.open("pvc-2", Profile.NONE)
    with pytest.raises(Refused, match="pvc-9 was not opened with the broker"):
        guest.begin_open(replace(active, volume_id="pvc-9"), nonce=NONCE, generation=2)


def test_a_retired_or_shredded_volume_is_not_opened(broker: RunningBroker) -> None:
    guest = broker.guest()
    formatted(guest)
    event = Event(actor="operator", action="test", subject="pvc-1")
    broker.broker.store.change("pvc-1", register.retire, event)
    with pytest.raises(Refused, match="retired"):
        guest.open("pvc-1", Profile.XTS)
    broker.broker.store.change("pvc-1", register.shred, event, destroy_secret=True)
    with pytest.raises(Refused, match="shredded"):
        guest.open("pvc-1", Profile.XTS)


def test_a_guest_with_another_measurement_is_refused(broker: RunningBroker) -> None:
    formatted(broker.guest())
    stranger = broker.guest(init_data=OTHER_INIT_DATA)
    with pytest.raises(NotReleased, match="workload 'spark': init_data does not list sha384:"):
        stranger.open("pvc-1", Profile.XTS)
    with pytest.raises(NotReleased, match=r"init_data does not list none"):
        broker.guest(init_data="").open("pvc-1", Profile.XTS)


def test_resources_come_byte_for_byte(broker: RunningBroker) -> None:
    broker.broker.put_resource("operator", RESOURCE, Secret(b"shhhhhhh\n\x00"))
    guest = broker.guest()
    assert guest.get_resource("kbs:///default/test/secret").reveal() == b"shhhhhhh\n\x00"
    with pytest.raises(NotFound, match="default/test/other does not exist"):
        guest.get_resource("kbs:///default/test/other")
    with pytest.raises(NotReleased, match="default/prod/secret"):
        guest.get_resource("kbs:///default/prod/secret")


def test_the_sample_tee_is_refused_by_the_guest_unless_allowed(broker: RunningBroker) -> None:
    with pytest.raises(Refused, match="sample TEE"):
        BrokerRegister(broker.settings(allow_sample=False))


def test_the_sample_tee_is_refused_by_the_broker_unless_allowed(tmp_path: Path) -> None:
    with (
        running_broker(tmp_path, POLICY_TEXT) as broker,
        pytest.raises(NotReleased, match=r"refuses to talk.*\[tee.sample\]"),
    ):
        broker.guest().open("pvc-1", Profile.XTS)


def test_a_policy_that_changes_counts_at_once(broker: RunningBroker) -> None:
    guest = broker.guest()
    guest.open("pvc-1", Profile.XTS)
    broker.broker.policy = replace(broker.broker.policy, allow_sample=False)
    with pytest.raises(NotReleased, match="sample"):
        guest.open("pvc-1", Profile.XTS)


def test_volumes_are_not_allocated_where_the_policy_says_never(tmp_path: Path) -> None:
    policy = POLICY.replace("version = 1", 'version = 1\nallocate = "never"')
    with running_broker(tmp_path, policy) as broker:
        with pytest.raises(NotReleased, match=r'allocate = "never".*volume allocate pvc-1$'):
            broker.guest().open("pvc-1", Profile.XTS)
        # The command runs beside the broker.
        assert main(["volume", "allocate", "--dir", str(broker.directory.root), "pvc-1"]) == 0
        assert formatted(broker.guest()).state is VolumeState.ACTIVE
        with pytest.raises(NotReleased, match="pvc-2"):
            broker.guest().open("pvc-2", Profile.XTS)


def test_an_ended_session_is_renewed(broker: RunningBroker) -> None:
    guest = broker.guest()
    record = leased(guest, guest.open("pvc-1", Profile.XTS)[0])
    broker.broker.sessions._sessions.clear()
    assert guest.begin_format(record, nonce=NONCE, payload_bytes=4096)[0].state is VolumeState.FORMATTING


def test_a_guest_does_not_attest_for_ever(broker: RunningBroker) -> None:
    broker.broker.sessions._lifetime = 3600
    guest = broker.guest()
    handshakes = 0
    original = guest._handshake

    def wasted() -> str | None:
        nonlocal handshakes
        handshakes += 1
        refusal = original()
        broker.broker.sessions._sessions.clear()
        return refusal

    guest._handshake = wasted  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match=r"no session.*3 tries"):
        guest.open("pvc-1", Profile.XTS)
    assert handshakes == 3


def test_another_authority_is_not_trusted(broker: RunningBroker) -> None:
    other = trustme.CA().cert_pem.bytes().decode()
    guest = broker.guest(replace(broker.settings(), ca_pem=other))
    with pytest.raises(Unavailable, match=r"does not verify against the pinned authority"):
        guest.open("pvc-1", Profile.XTS)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "http://127.0.0.1:1"}, "broker.url"),
        ({"url": "https://127.0.0.1:1/kbs/v0"}, "broker.url"),
        ({"url": "https://user@127.0.0.1"}, "broker.url"),
        ({"url": "https://127.0.0.1:99999"}, "broker.url"),
        ({"url": ""}, "broker.url"),
        ({"ca_pem": ""}, "broker.ca"),
        ({"ca_pem": "nonsense"}, "broker.ca"),
    ],
)
def test_wrong_settings_are_refused_by_name(broker: RunningBroker, change: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        BrokerRegister(replace(broker.settings(), **change))  # type: ignore[arg-type]


def test_a_broker_that_is_away_is_tried_again_and_then_reported(broker: RunningBroker) -> None:
    waited: list[float] = []
    guest = broker.guest(broker.settings(url="https://127.0.0.1:1"), sleep=waited.append)
    with pytest.raises(Unavailable, match=r"6 tries failed.*refused"):
        guest.open("pvc-1", Profile.XTS)
    assert waited == sorted(waited)
    assert len(waited) == 5


def test_no_secret_is_ever_logged(broker: RunningBroker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    content = b"a-very-secret-resource"
    broker.broker.put_resource("operator", RESOURCE, Secret(content))
    guest = broker.guest()
    _, secret = guest.open("pvc-1", Profile.XTS)
    guest.get_resource("kbs:///default/test/secret")
    with pytest.raises(NotReleased):
        guest.open("other", Profile.XTS)
    everything = caplog.text + "".join(repr(record.__dict__) for record in caplog.records)
    everything += repr(broker.broker.store.audit_entries())
    token = broker.directory.admin_token.read_text().strip()
    for raw in (secret.reveal(), content):
        for shown in (raw.hex(), base64.b64encode(raw).decode(), repr(raw)[2:-1]):
            assert shown not in everything
    assert token not in everything
    assert "register" in caplog.text


def test_nothing_readable_lies_in_the_database(broker: RunningBroker) -> None:
    content = b"a-very-secret-resource"
    broker.broker.put_resource("operator", RESOURCE, Secret(content))
    _, secret = broker.guest().open("pvc-1", Profile.XTS)
    for path in broker.directory.root.glob("broker.sqlite*"):
        assert path.stat().st_mode & 0o077 == 0
        stored = path.read_bytes()
        assert content not in stored
        assert secret.reveal() not in stored


def test_the_audit_log_tells_the_story(broker: RunningBroker) -> None:
    guest = broker.guest()
    active = formatted(guest)
    with pytest.raises(NotReleased):
        guest.open("other", Profile.XTS)
    with pytest.raises(Refused):
        guest.begin_format(active, nonce=OTHER, payload_bytes=4096)
    with pytest.raises(Busy):
        guest.begin_open(replace(active, revision=1), nonce=OTHER, generation=2)
    events = [(entry.event.action, entry.event.subject) for entry in broker.broker.store.audit_entries()]
    assert events == [
        ("attested", "sample"),
        ("allocated", "pvc-1"),
        ("secret-released", "pvc-1"),
        ("lease-taken", "pvc-1"),
        ("format-begun", "pvc-1"),
        ("formatted", "pvc-1"),
        ("denied", "other"),
        ("refused", "pvc-1"),
        ("refused", "pvc-1"),
    ]
    refused, busy = (entry.event for entry in broker.broker.store.audit_entries()[-2:])
    assert refused.detail.startswith("begin-format: volume pvc-1 is active in the register")
    assert busy.detail.startswith("begin-open: volume pvc-1 changed since it was read")
    assert broker.broker.store.verify_audit()[0] == len(events)


def test_the_log_tells_two_guests_of_one_image_apart_and_names_their_workload(broker: RunningBroker) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    for number, key in enumerate(keys):
        broker.guest(key=key).open(f"pvc-{number}", Profile.XTS)
    expected = []
    for key in keys:
        x, y = jwk.coordinates(key.public_key(), "P-256")
        # The example of RFC 7638, section 3: required members only, in the order of their names, without spaces.
        members = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
        digest = hashlib.sha256(members.encode()).digest()
        expected += [f"{base64.urlsafe_b64encode(digest).decode().rstrip('=')} spark"] * 3
    entries = broker.broker.store.audit_entries()
    assert [entry.event.actor for entry in entries] == expected
    assert [entry.event.action for entry in entries] == ["attested", "allocated", "secret-released"] * 2
    assert entries[0].event.detail == entries[3].event.detail
    assert init_data.parse(INIT_DATA).digest in entries[0].event.detail


def test_guests_of_no_workload_do_not_fill_the_log_by_attesting(broker: RunningBroker) -> None:
    for _ in range(65):
        with pytest.raises(NotReleased):
            broker.guest(init_data=OTHER_INIT_DATA).open("pvc-1", Profile.XTS)
    events = [entry.event for entry in broker.broker.store.audit_entries()]
    assert len(events) == 60
    assert {event.actor.partition(" ")[2] for event in events} == {"-"}
    assert {event.action for event in events} == {"attested", "denied"}


def test_failed_attestations_are_noted_but_do_not_fill_the_log(broker: RunningBroker) -> None:
    for _ in range(50):
        session, _ = broker.broker.challenge(b'{"version":"0.4.0","tee":"sample","extra-params":""}')
        with pytest.raises(InvalidInput):
            broker.broker.attest(session.id, b"{}")
    broker.broker.close()
    with closing(broker.directory.open_store()) as store:
        events = [entry.event for entry in store.audit_entries()]
    assert [(event.actor, event.action, event.subject) for event in events] == [
        ("unattested", "attestation-failed", "sample")
    ] * 2
    assert "missing required field" in events[0].detail
    assert events[1].detail.startswith("49 more in that minute; the last: ")


def test_a_guest_that_is_refused_often_does_not_fill_the_log(broker: RunningBroker) -> None:
    guest = broker.guest()
    active = formatted(guest)
    before = len(broker.broker.store.audit_entries())
    for _ in range(100):
        with pytest.raises(Refused):
            guest.begin_format(active, nonce=OTHER, payload_bytes=4096)
    assert len(broker.broker.store.audit_entries()) - before <= 62


def test_a_guest_key_of_the_other_curve_works(broker: RunningBroker) -> None:
    guest = broker.guest(key=ec.generate_private_key(ec.SECP521R1()))
    assert len(guest.open("pvc-1", Profile.XTS)[1].reveal()) == 32


def test_the_share_of_a_volume_key_is_new_each_time_and_kept_nowhere(broker: RunningBroker) -> None:
    guest = broker.guest()
    record = leased(guest, guest.open("pvc-1", Profile.XTS)[0])
    shares = [guest.begin_format(record, nonce=NONCE, payload_bytes=4096)[1].reveal() for _ in range(2)]
    assert shares[0] != shares[1]
    kept = b"".join(path.read_bytes() for path in broker.directory.root.glob("broker.sqlite*"))
    for share in shares:
        assert not any(form in kept for form in (share, share.hex().encode(), base64.b64encode(share)))


def test_the_broker_gives_the_header_back_that_was_committed(broker: RunningBroker) -> None:
    guest = broker.guest()
    record, _ = guest.open("pvc-1", Profile.XTS)
    with pytest.raises(NotFound, match="keeps no header"):
        guest.header(record)
    header = os.urandom(HEADER_PARTS_BYTES).ljust(HEADER_BYTES, b"\0")
    record, _ = guest.begin_format(leased(guest, record), nonce=NONCE, payload_bytes=4096)
    record = guest.commit_format(record, nonce=NONCE, header=header, payload_bytes=4096)
    assert record.header_sha256 == header_digest(header).hex()
    assert guest.header(record) == header
    assert broker.broker.store.audit_entries()[-1].event.action == "header-released"
    wrapped = broker.broker.store.header("pvc-1")
    assert wrapped is not None
    assert header[:64] not in wrapped, "it is kept as secrets are"
    for words in (["retire", "pvc-1"], ["shred", "pvc-1", "--yes"]):
        assert main(["volume", *words, "--dir", str(broker.directory.root)]) == 0
        with pytest.raises(Refused, match="is not released any more"):
            guest.header(record)
    assert broker.broker.store.header("pvc-1") is None
    kept = b"".join(path.read_bytes() for path in broker.directory.root.glob("broker.sqlite*"))
    assert wrapped[:64] not in kept


def test_a_header_that_the_broker_could_not_keep_whole_is_not_committed(broker: RunningBroker) -> None:
    guest = broker.guest()
    record = leased(guest, guest.open("pvc-1", Profile.XTS)[0])
    record, _ = guest.begin_format(record, nonce=NONCE, payload_bytes=4096)
    with pytest.raises(InvalidInput, match="behind its first"):
        guest.commit_format(record, nonce=NONCE, header=b"x" * HEADER_BYTES, payload_bytes=4096)
    assert broker.broker.store.volume("pvc-1").state is VolumeState.FORMATTING
