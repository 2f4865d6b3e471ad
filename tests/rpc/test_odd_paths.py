"""Paths that are long or odd: what is signed is the path that was asked for, and neither log grows by what a stranger
writes into it. Nothing has to be proved to send one.
"""

import http.client
import io
import logging
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from csi.core import log
from csi.core.errors import InvalidInput
from csi.core.sealed import Profile
from csi.kbs import signed_answers
from csi.kbs.messages import PREFIX
from tests.fakes.broker import RunningBroker, leased, running_broker

NONCE = "5c" * 32
LONG = 50_000 * "a"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path) as running:
        yield running


def post(broker: RunningBroker, path: str, headers: dict[str, str]) -> tuple[int, bytes, str | None]:
    """Status, body and signature of the answer. The standard library's client sends a path as it is."""
    url, trusted = urlsplit(broker.url), broker.directory.certificate("ca").read_text()
    context = ssl.create_default_context(cadata=trusted)
    with closing(http.client.HTTPSConnection(str(url.hostname), url.port, context=context)) as connection:
        connection.request("POST", path, b"{}", headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers[signed_answers.SIGNATURE_HEADER]


@pytest.mark.parametrize("hidden", ["%0A", "%0D", "%09"])
def test_an_answer_is_not_signed_for_another_path_than_was_asked_for(broker: RunningBroker, hidden: str) -> None:
    """A proxy that puts a line's end into a guest's path must not get a refusal that is genuine for that guest."""
    guest = broker.guest()
    leased(guest, guest.open("pvc-1", Profile.XTS)[0])
    key = broker.directory.load_pair("token").key.public_key()
    path, asked = f"{PREFIX}/volumes/pvc-1/begin-open", f"{PREFIX}/volumes/pvc-1{hidden}/begin-open"
    headers = {"Cookie": str(guest._cookie), signed_answers.NONCE_HEADER: NONCE}
    status, body, signature = post(broker, path, headers)
    signed_answers.check(key, signature, path=path, nonce=NONCE, status=status, body=body)
    status, body, signature = post(broker, asked, headers)
    assert status == 400
    with pytest.raises(InvalidInput):
        signed_answers.check(key, signature, path=path, nonce=NONCE, status=status, body=body)


def test_a_refused_administrators_path_does_not_fill_the_audit_log(broker: RunningBroker) -> None:
    assert post(broker, f"{PREFIX}/resource/{LONG}", {})[0] == 401
    [event] = [entry.event for entry in broker.broker.store.audit_entries()]
    assert event.action == "administration-refused"
    assert len(event.subject) == 1000


def test_a_long_volume_id_does_not_fill_the_log(broker: RunningBroker) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(log.JsonFormatter())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    cookie = {"Cookie": str(opened(broker))}
    try:
        assert post(broker, f"{PREFIX}/leases/{LONG}/renew", {})[0] == 400
        assert post(broker, f"{PREFIX}/volumes/{LONG}/open", cookie)[0] == 403
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    events = [line for line in written.getvalue().splitlines() if "aaaa" in line]
    assert len(events) == 2
    assert max(len(event) for event in events) < 1_000


def opened(broker: RunningBroker) -> str | None:
    """The cookie of a guest's session."""
    guest = broker.guest()
    guest.open("pvc-1", Profile.XTS)
    return guest._cookie
