"""Whoever relays a guest's evidence holds an attested session. It moves nothing, and learns nothing of any volume."""

import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi.broker import rules
from csi.broker.audit import Event
from csi.broker.tickets import Tickets
from csi.core.errors import NotReleased
from csi.core.sealed import Profile
from csi.guest.attest.kbs_client import BrokerRegister
from csi.kbs.register import VolumeRecord, VolumeState
from tests.fakes.broker import RunningBroker, leased, running_broker

NONCE, OTHER = "1e" * 32, "0f" * 32
EVENT = Event(actor="operator", action="test", subject="pvc-1")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(Path(tmp_path_factory.mktemp("relay")) / "broker") as running:
        yield running


@dataclass
class Relay:
    """The guest's session without the guest's key."""

    broker: RunningBroker
    cookie: str

    def post(self, volume: str, action: str, body: object) -> tuple[int, str, str]:
        url = urlsplit(self.broker.url)
        context = ssl.create_default_context(cadata=self.broker.directory.certificate("ca").read_text())
        connection = http.client.HTTPSConnection(str(url.hostname), url.port, context=context)
        try:
            connection.request("POST", f"/kbs/v0/volumes/{volume}/{action}", json.dumps(body), {"Cookie": self.cookie})
            answer = connection.getresponse()
            error = json.loads(answer.read())
        finally:
            connection.close()
        return answer.status, error.get("type", ""), error.get("detail", "")


def active(guest: BrokerRegister, volume: str) -> VolumeRecord:
    record = leased(guest, guest.open(volume, Profile.XTS)[0])
    record, _ = guest.begin_format(record, nonce=NONCE, payload_bytes=4096)
    return guest.commit_format(record, nonce=NONCE, header=b"header".ljust(16 << 20, b"\0"), payload_bytes=4096)


CHANGES: dict[str, dict[str, object]] = {
    "lease": {},
    "begin-format": {"payload_bytes": 4096},
    "commit-format": {"payload_bytes": 4096, "header": "aGVhZGVy"},
    "begin-open": {"generation": 2},
    "commit-open": {"generation": 2},
}


@pytest.mark.parametrize("action", CHANGES)
def test_a_cookie_alone_does_not_move_the_register(broker: RunningBroker, action: str) -> None:
    guest = broker.guest()
    record = active(guest, f"pvc-{action}")
    guest.open("pvc-other", Profile.XTS)
    assert guest._cookie is not None
    relay, before = Relay(broker, guest._cookie), broker.broker.store.volumes()
    guessed = {**CHANGES[action], "lease": guest._leases[record.volume_id]}
    if action != "lease":
        guessed |= {"revision": record.revision, "nonce": OTHER}
    assert relay.post(record.volume_id, action, guessed)[0] == 400
    of_another_volume = guest._held["pvc-other"].ticket
    for ticket in ("00" * 32, of_another_volume):
        assert relay.post(record.volume_id, action, {**guessed, "ticket": ticket})[0] == 403
    stranger = broker.guest()
    stranger.open(record.volume_id, Profile.XTS)
    of_another_session = stranger._held[record.volume_id].ticket
    assert relay.post(record.volume_id, action, {**guessed, "ticket": of_another_session})[0] == 403
    assert broker.broker.store.volumes() == before


def test_errors_in_clear_say_nothing_of_a_volume(broker: RunningBroker) -> None:
    """Whatever state a volume is in, the relay sees one status and a text that only the guest can read."""
    guest = broker.guest()
    record = active(guest, "pvc-state")
    assert guest._cookie is not None
    relay = Relay(broker, guest._cookie)
    asks = [("open", {"profile": "none"})]
    wrong = {"revision": 1, "nonce": OTHER, "ticket": "00" * 32, "lease": "00" * 32}
    asks += [(action, {**wrong, **more}) for action, more in CHANGES.items() if action != "lease"]
    asks.append(("lease", {"ticket": "00" * 32, "lease": "00" * 32}))
    seen = set()
    for _ in range(3):
        for action, body in asks:
            status, kind, detail = relay.post("pvc-state", action, body)
            seen.add((status, kind))
            assert set(json.loads(detail)) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
        found = broker.broker.store.volume("pvc-state")
        change = rules.retire if found.state is VolumeState.ACTIVE else rules.shred
        broker.broker.store.change("pvc-state", change, EVENT, destroy_secret=change is rules.shred)
    assert seen == {(403, "urn:sealed-local:sealed-error")}
    assert record.state is VolumeState.ACTIVE


def test_a_new_session_gets_a_ticket_of_its_own_by_opening_again(broker: RunningBroker) -> None:
    guest = broker.guest()
    record = active(guest, "pvc-renewed")
    before, entries = guest._held["pvc-renewed"], len(broker.broker.store.audit_entries())
    broker.broker.sessions._sessions.clear()
    guest.begin_open(record, nonce=OTHER, generation=2)
    assert guest._held["pvc-renewed"].ticket != before.ticket
    told = [entry.event.action for entry in broker.broker.store.audit_entries()[entries:]]
    assert told == ["attested", "secret-released", "open-begun"]


@settings(max_examples=200)
@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_a_ticket_is_of_one_session_and_one_volume(session: str, volume: str, other: str, another: str) -> None:
    tickets = Tickets()
    tickets.check(tickets.of(session, volume), session, volume)
    if (session, volume) != (other, another):
        with pytest.raises(NotReleased, match="open the volume again"):
            tickets.check(tickets.of(session, volume), other, another)
    with pytest.raises(NotReleased):
        Tickets().check(tickets.of(session, volume), session, volume)
