"""A state record that verifies and whose header MAC does not, and a header that is authentic and not as we make it."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csi.core.errors import Tampered
from csi.guest.seal import keys, luks_header, state_record
from csi.guest.seal.state_record import StateRecord
from tests.fakes.sealed_guest import RECORD_OFFSETS, SECRET, VOLUME, Machine, small_format


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with small_format():
        made = Machine(str(tmp_path))
        made.open()
        made.close()
        yield made


def test_a_header_that_the_record_does_not_authenticate_is_not_used(machine: Machine) -> None:
    own = keys.derive(SECRET, VOLUME, 1)
    for offset in RECORD_OFFSETS:
        found = state_record.decode(bytes(machine.disk.content[offset : offset + 4096]), own, VOLUME)
        assert isinstance(found, StateRecord)
        wrong = replace(found, header_mac=hashlib.sha256(found.header_mac).digest())
        machine.disk.write(offset, state_record.encode(wrong, own, VOLUME))
    before = bytes(machine.disk.content)
    with pytest.raises(Tampered, match="not the one that the volume's state record authenticates"):
        machine.open()
    assert (machine.live, bytes(machine.disk.content)) == ({}, before)


def test_an_authentic_header_is_still_checked_against_the_allow_list(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Tampered("not as we make it")

    monkeypatch.setattr(luks_header, "check", refuse)
    with pytest.raises(Tampered, match="not as we make it"):
        machine.open()
    assert machine.live == {}
