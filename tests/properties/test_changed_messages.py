"""Records, answers, requests and states with changed bytes: read as what they are, or refused; never a traceback."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from csi.core.errors import InvalidInput, Tampered
from csi.core.secret import Secret
from csi.guest.seal import state_record
from csi.guest.seal.state_record import SlotState, StateRecord
from csi.kbs import disk_state, strict_json, volumes_api
from csi.kbs.register import Announcement
from tests.unit.test_register_rules import ACTIVE, EPOCH
from tests.unit.test_state_record import KEYS, OPENED, VOLUME, signed

ROUNDS = 20_000
ANNOUNCED = Announcement(generation=7, nonce="b2" * 32, epoch=EPOCH)


def changed(plain: bytes, dice: random.Random) -> bytes:
    """One to four bytes replaced, left out, doubled or cut off."""
    data = bytearray(plain)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data))
        match dice.randrange(4):
            case 0:
                data[place] = dice.randrange(256)
            case 1:
                del data[place]
            case 2:
                data.insert(place, data[place])
            case _:
                data[place] = dice.choice(b'0123456789"{}[],:-')
    return bytes(data)


def outcomes(plain: bytes, read: Callable[[bytes], object], refusal: type[Exception]) -> Counter[str]:
    dice, found = random.Random(9), Counter[str]()
    for _ in range(ROUNDS):
        try:
            found[type(read(changed(plain, dice))).__name__] += 1
        except refusal:
            found["refused"] += 1
    print(f"{ROUNDS} changed: {dict(found)}")
    return found


def wire_record() -> bytes:
    record = {"revision": 3, "announced": 7, "header_sha256": "ab" * 32, "payload_bytes": 4096}
    opened = volumes_api.Answer(
        record=strict_json.convert(
            {"volume_id": VOLUME, "key_version": 1, "profile": "xts", "state": str(ACTIVE.state), **record}
            | {"head": {"generation": 7, "nonce": "b2" * 32, "epoch": EPOCH}},
            type(ACTIVE),
            "record",
        ),
        epoch=EPOCH,
        ticket="7c" * 32,
    )
    return strict_json.encode(opened)


def request() -> bytes:
    asked = volumes_api.BeginOpenRequest(ticket="7c" * 32, lease="5e" * 32, revision=3, nonce="0f" * 32, generation=8)
    return strict_json.encode(asked)


def lease_request() -> bytes:
    return strict_json.encode(volumes_api.LeaseRequest(ticket="7c" * 32, lease="5e" * 32, instead="4d" * 32))


TEXTS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
    "an answer": (wire_record, lambda data: volumes_api.decode_answer(Secret(data))),
    "a request": (request, lambda data: strict_json.decode(data, volumes_api.BeginOpenRequest, "begin-open")),
    "a request for a lease": (
        lease_request,
        lambda data: strict_json.decode(data, volumes_api.LeaseRequest, "lease"),
    ),
    "an answer about a lease": (
        lambda: strict_json.encode(volumes_api.LeaseAnswer(seconds=60)),
        lambda data: strict_json.decode(data, volumes_api.LeaseAnswer, "answer"),
    ),
    "a state": (
        lambda: str(OPENED.state).encode(),
        lambda data: disk_state.parse(data.decode(errors="replace"), "--found"),
    ),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_changed_message_is_read_or_refused(what: str) -> None:
    make, read = TEXTS[what]
    read(make())
    found = outcomes(make(), read, InvalidInput)
    assert found["refused"] > ROUNDS // 10
    assert found.total() == ROUNDS


def test_a_changed_record_says_nothing_without_its_mac_and_only_what_it_says_with_it() -> None:
    raw = state_record.encode(OPENED, KEYS, VOLUME)

    def without_mac(data: bytes) -> object:
        sized = data.ljust(len(raw), b"\0")[: len(raw)]
        found = state_record.decode(sized, KEYS, VOLUME)
        assert sized == raw or isinstance(found, SlotState)
        return found

    def with_mac(data: bytes) -> object:
        body = data.ljust(4064, b"\0")[:4064]
        found = state_record.decode(signed(body), KEYS, VOLUME)
        assert isinstance(found, StateRecord)
        assert state_record.encode(found, KEYS, VOLUME) == signed(body), "nothing in it has a meaning that was not read"
        return found

    assert outcomes(raw, without_mac, Tampered)["SlotState"] > ROUNDS // 2
    named = outcomes(raw[:256], with_mac, Tampered)
    assert named["refused"] > ROUNDS // 10
    assert named["StateRecord"] > ROUNDS // 10
