"""Changed messages against a live broker, over TLS: each is answered with words or refused; no traceback, no 5xx.

What is sent is a good message of its moment (a session that attested, the volume's ticket and revision) with some bytes
or one member changed, so that it gets as far as such a message can get.
"""

import base64
import hashlib
import http.client
import json
import logging
import os
import random
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from csi.core.sealed import Profile
from csi.guest.attest.kbs_client import BrokerRegister
from csi.kbs import messages as kbs
from csi.kbs import signed_answers
from tests.fakes.broker import INIT_DATA, RunningBroker, leased, running_broker
from tests.fakes.rust_shaped_client import RustShapedClient
from tests.properties.test_changed_messages import changed

ROUNDS = int(os.environ.get("SEALED_LOCAL_FUZZ") or (51_000 if os.environ.get("SEALED_LOCAL_REQUIRE_LAB") else 6_000))
"""51,000 take a minute and a half, which the whole gate has. `make fuzz` sends more."""
SEED = int(os.environ.get("SEALED_LOCAL_FUZZ_SEED") or 9)
_EACH = 300
"""So many on one volume and in one session; then new ones, because some of them get through and change the record."""
_LONGEST_DETAIL = 2_000
"""Of what is said in an error, whoever asked: it is logged, and nobody has to prove anything to cause one."""
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**62,
    2**63,
    2**64,
    10**400,
    1.5,
    1e308,
    "",
    "\u0000",
    "\ud800",
    "\u00e9" * 40,
    "a" * 70_000,
    "../../x",
    [],
    {},
    [[]],
    {"": {}},
    "ff" * 32,
    "FF" * 32,
    "ff" * 32 + "\n",
)


@dataclass
class Message:
    """A request that is good at this moment."""

    name: str
    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path / "broker") as running:
        yield running


def handshakes(broker: RunningBroker) -> list[Message]:
    client = RustShapedClient(broker.url, broker.directory.certificate("ca").read_text(), init_data=INIT_DATA)
    request = {"version": "0.4.0", "tee": "sample", "extra-params": {"supported-hash-algorithms": ["sha384"]}}
    answer = client.http.post("/auth", json=request)
    evidence = json.dumps(client.attestation(answer.json()["nonce"])).encode()
    client.close()
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return [
        Message("auth", "POST", f"{kbs.PREFIX}/auth", json.dumps(request).encode()),
        Message("attest", "POST", f"{kbs.PREFIX}/attest", evidence, {"Cookie": cookie}),
    ]


def volume_calls(guest: BrokerRegister, volume: str, progress: int) -> list[Message]:
    """Every call about a volume that is new, being formatted, formatted, or being opened."""
    nonce, header = hashlib.sha256(volume.encode()).hexdigest(), b"header of it".ljust(16 << 20, b"\0")
    record = leased(guest, guest.open(volume, Profile.XTS)[0])
    if progress > 0:
        record, _ = guest.begin_format(record, nonce=nonce, payload_bytes=8192)
    if progress > 1:
        record = guest.commit_format(record, nonce=nonce, header=header, payload_bytes=8192)
    if progress > 2:
        nonce = "0f" * 32
        record = guest.begin_open(record, nonce=nonce, generation=2)
    common = {
        "ticket": guest._held[volume].ticket,
        "lease": guest._leases[volume],
        "revision": record.revision,
        "nonce": nonce,
    }
    bodies: dict[str, dict[str, Any]] = {
        "open": {"profile": "xts", "used_as": {"namespace": None, "claim": None}},
        "header": {"ticket": common["ticket"]},
        "lease": {"ticket": common["ticket"], "lease": common["lease"], "instead": common["lease"]},
        "begin-format": {**common, "payload_bytes": 8192},
        "commit-format": {**common, "payload_bytes": 8192, "header": base64.b64encode(header[:64]).decode()},
        "begin-open": {**common, "generation": 2},
        "commit-open": {**common, "generation": 2},
    }
    headers = {"Cookie": str(guest._cookie), signed_answers.NONCE_HEADER: "5c" * 32}
    return [
        Message(action, "POST", f"{kbs.PREFIX}/volumes/{volume}/{action}", json.dumps(body).encode(), headers)
        for action, body in bodies.items()
    ]


def other_calls(broker: RunningBroker, guest: BrokerRegister, volume: str) -> list[Message]:
    """What is neither the handshake nor about a volume's state."""
    admin = {"Authorization": f"Bearer {broker.directory.admin_token.read_text().strip()}"}
    path, lease = f"{kbs.PREFIX}/resource/default/test/key", json.dumps({"lease": guest._leases[volume]}).encode()
    return [
        Message("put", "POST", path, b'{"any":"bytes"}', admin),
        Message("get", "GET", path, b"", {"Cookie": str(guest._cookie)}),
        Message("get", "GET", f"https://elsewhere{path}?query=1", b"", {"Cookie": str(guest._cookie)}),
        Message("policy", "POST", f"{kbs.PREFIX}/resource-policy", b'{"policy":"cGFja2FnZQ"}', admin),
        Message(
            "renew", "POST", f"{kbs.PREFIX}/leases/{volume}/renew", lease, {signed_answers.NONCE_HEADER: "5c" * 32}
        ),
    ]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every member of a document."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    return found


def other_member(body: bytes, dice: random.Random) -> bytes:
    """One member is something odd, twice there, missing, or new."""
    document = json.loads(body)
    *parents, last = dice.choice(places(document))
    inside = document
    for key in parents:
        inside = inside[key]
    match dice.randrange(4):
        case 0:
            del inside[last]
        case 1:
            inside[f"{last}x"] = inside[last]
        case 2:
            return body[:-1] + b"," + json.dumps({last: dice.choice(ODD)}).encode()[1:]
        case _:
            inside[last] = dice.choice(ODD)
    return json.dumps(document).encode()


def other_header(message: Message, dice: random.Random) -> Message:
    """The same body under other headers or another path. What HTTP itself forbids in them is not the broker's."""
    headers, path = dict(message.headers), message.path
    if headers and dice.random() < 0.6:
        name = dice.choice(sorted(headers))
        headers[name] = "".join(chr(byte) for byte in changed(headers[name].encode(), dice) if 32 < byte < 127)
    else:
        start = path[: path.index("/kbs") + 1]
        text = changed(path.removeprefix(start).encode(), dice)
        path = start + "".join(chr(byte) if 32 < byte < 127 else f"%{byte:02X}" for byte in text)
    return Message(message.name, message.method, path, message.body, headers)


CHANGES: dict[str, Callable[[Message, random.Random], Message]] = {
    "bytes": lambda message, dice: Message(
        message.name, message.method, message.path, changed(message.body, dice), message.headers
    ),
    "member": lambda message, dice: Message(
        message.name, message.method, message.path, other_member(message.body, dice), message.headers
    ),
    "header": other_header,
}


class Line:
    """A connection that is kept, as long as the broker keeps it."""

    def __init__(self, broker: RunningBroker) -> None:
        self._url = urlsplit(broker.url)
        self._context = ssl.create_default_context(cadata=broker.directory.certificate("ca").read_text())
        self._open: http.client.HTTPSConnection | None = None

    def send(self, message: Message) -> tuple[int, bytes]:
        """On a slow machine the broker has closed an idle connection meanwhile. A message at which it hangs up does that
        on a new connection as well, and fails.
        """
        kept = self._open is not None
        try:
            return self._send(message)
        except ConnectionError:
            self.close()
            if not kept:
                raise
            return self._send(message)

    def _send(self, message: Message) -> tuple[int, bytes]:
        if self._open is None:
            self._open = http.client.HTTPSConnection(str(self._url.hostname), self._url.port, context=self._context)
        self._open.request(message.method, message.path, message.body, message.headers)
        answer = self._open.getresponse()
        body = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, body

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def check_answer(message: Message, status: int, body: bytes) -> None:
    assert status < 500, f"{status} to {message}"
    if status != 200:
        error = json.loads(body)
        assert set(error) == {"type", "detail"}, message
        assert len(error["detail"]) < _LONGEST_DETAIL, f"{len(error['detail'])} bytes said to {message.name}"


def test_no_changed_message_ends_in_a_traceback_or_a_5xx(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    dice, found, line = random.Random(SEED), Counter[tuple[str, int]](), Line(broker)
    guest = broker.guest()
    for number in range(ROUNDS // _EACH):
        messages = handshakes(broker) + volume_calls(guest, f"pvc-{number}", number % 4)
        messages += other_calls(broker, guest, f"pvc-{number}")
        for _ in range(_EACH):
            message = dice.choice(messages)
            kind = dice.choice(sorted(CHANGES)) if message.body else "header"
            message = CHANGES[kind](message, dice)
            status, body = line.send(message)
            check_answer(message, status, body)
            found[message.name, status] += 1
    line.close()
    print(f"{found.total()} changed messages:")
    for name in sorted({name for name, _ in found}):
        print(f"  {name}:", ", ".join(f"{status}: {found[name, status]}" for at, status in sorted(found) if at == name))
    assert found.total() == ROUNDS // _EACH * _EACH
    assert caplog.records == [], "something went wrong that nobody had foreseen"
    broker.broker.store.check_integrity()
    broker.broker.store.verify_audit()
    assert len(broker.broker.store.volumes()) >= ROUNDS // _EACH, "each record can still be read"
    assert guest.open("pvc-after", Profile.XTS)[0].revision == 1
