"""`sealed-local guest open`, whole, on a machine in memory and against a real broker: how often it asks for the secret."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from csi.broker.main import main as broker_main
from csi.core import process
from csi.guest import main
from csi.guest.status import Notes
from csi.guest.verbs import Guest
from csi.kbs import init_data
from csi.kbs.register import VolumeRecord
from tests.fakes.broker import INIT_DATA, POLICY, RunningBroker, running_broker
from tests.fakes.sealed_guest import DEVICE, HEADER_BYTES, RECORD_OFFSETS, VOLUME, Machine, small_format

GUEST_POLICY = """
version = 1
[broker]
url = "{url}"
allow_sample = true
ca = '''{ca}'''
[[volume]]
name = "data"
id = "{volume}"
mount = "{mount}"
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    policy = POLICY.replace(init_data.parse(INIT_DATA).digest, "any")
    with running_broker(tmp_path / "broker", policy) as running:
        yield running


@dataclass
class World:
    """A guest with a blank disk, and what its verbs print."""

    broker: RunningBroker
    machine: Machine
    policy: Path
    guest: Guest
    printed: pytest.CaptureFixture[str]

    def run(self, *arguments: str, status: int = 0) -> str:
        self.printed.readouterr()
        words = [*arguments, "--volume", VOLUME]
        if arguments[0] != "close":
            words += ["--policy", str(self.policy)]
        found = main.main(words, guest=self.guest)
        said = self.printed.readouterr()
        assert found == status, said.err
        return said.out if status == 0 else said.err

    def actions(self) -> list[str]:
        return [entry.event.action for entry in self.broker.broker.store.audit_entries()]


@pytest.fixture
def world(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[World]:
    monkeypatch.setattr(process, "harden", lambda: None)
    mount, policy = tmp_path / "data", tmp_path / "policy.toml"
    mount.mkdir()
    settings = broker.settings()
    policy.write_text(GUEST_POLICY.format(url=settings.url, ca=settings.ca_pem, volume=VOLUME, mount=mount))
    machine = Machine(str(mount))
    with small_format():
        guest = Guest(machine=machine, notes=Notes(folder=tmp_path / "run"), start_keeper=lambda _: None)
        yield World(broker, machine, policy, guest, capsys)


def apart_from_revisions(record: VolumeRecord) -> VolumeRecord:
    """Without what a lease changes that was taken and given back."""
    return replace(record, revision=1, last_nonce=None)


def test_an_open_without_a_device_releases_the_secret_once(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "harden", lambda: None)
    mount, policy = tmp_path / "data", tmp_path / "policy.toml"
    mount.mkdir()
    settings = broker.settings()
    policy.write_text(GUEST_POLICY.format(url=settings.url, ca=settings.ca_pem, volume=VOLUME, mount=mount))
    guest = Guest(machine=Machine(str(mount)), notes=Notes(folder=tmp_path / "run"), start_keeper=lambda _: None)
    with small_format():

        def run(*arguments: str) -> int:
            return main.main([*arguments, "--volume", VOLUME], guest=guest)

        assert run("open", "--policy", str(policy), "--device", DEVICE) == 0
        assert run("close") == 0
        before = len(broker.broker.store.audit_entries())
        assert run("open", "--policy", str(policy)) == 0
    told = [entry.event.action for entry in broker.broker.store.audit_entries()[before:]]
    assert told == ["attested", "secret-released", "lease-taken", "open-begun", "opened"]


def test_a_volume_is_mapped_for_a_repair_and_nothing_is_announced(world: World) -> None:
    assert "never formatted" in world.run("open", "--no-mount", "--device", DEVICE, status=10)
    world.run("open", "--device", DEVICE)
    assert "is open already" in world.run("open", "--no-mount", status=10)
    world.run("close")
    record, disk = world.broker.broker.store.volume(VOLUME), bytes(world.machine.disk.content)
    path = world.run("open", "--no-mount").strip()
    assert path.removeprefix("/dev/mapper/") in world.machine.live
    assert world.machine.mounted == []
    world.run("close")
    assert (world.machine.live, bytes(world.machine.disk.content)) == ({}, disk)
    assert apart_from_revisions(world.broker.broker.store.volume(VOLUME)) == apart_from_revisions(record)
    world.run("open")


def test_inspect_says_what_is_there_and_changes_nothing(world: World) -> None:
    assert "would format it, if the policy allows that" in world.run("inspect", "--device", DEVICE)
    world.run("open", "--device", DEVICE)
    world.run("close")
    older = bytes(world.machine.disk.content)
    world.run("open")
    world.run("close")
    record, newest = world.broker.broker.store.volume(VOLUME), bytes(world.machine.disk.content)
    said = world.run("inspect")
    assert "register: head generation 3 (" in said
    assert "an open for writing: would open it by header copy A" in said
    assert said.count("the register knows it") == said.count("the register does NOT know it") == 1
    assert said.count("is the one that the register holds") == 2
    world.machine.disk.show(older)
    said = world.run("inspect")
    assert "an open for writing: refused: the device shows generation 2" in said
    assert (world.broker.broker.store.volume(VOLUME), bytes(world.machine.disk.content)) == (record, older)
    assert world.actions()[-1] == "secret-released"
    (found,) = re.findall(r"--found (\S+)", said)
    words = ["volume", "accept", VOLUME, "--found", found, "--reason", "lost flush", "--yes"]
    assert broker_main([*words, "--dir", str(world.broker.directory.root)]) == 0
    world.run("open")
    world.run("close")
    assert world.broker.broker.store.volume(VOLUME).generation == 4
    world.machine.disk.show(newest)
    assert "generation 3" in world.run("open", status=5), "what was given up stays so"


def test_the_passphrase_goes_to_a_new_private_file_only(world: World, tmp_path: Path) -> None:
    world.run("open", "--device", DEVICE)
    world.run("close")
    target = tmp_path / "passphrase"
    assert world.run("recover-key", "--to", str(target)) == ""
    assert target.stat().st_mode & 0o777 == 0o600
    opened = hashlib.sha256(target.read_bytes()).digest()
    assert bytes(world.machine.disk.content[2 * 16384 :][:32]) == opened, "it opens the header on the disk"
    assert "File exists" in world.run("recover-key", "--to", str(target), status=2)
    assert world.actions().count("secret-released") == 3


def test_the_claim_that_the_measured_policy_names_becomes_the_owner_and_stays_it(world: World) -> None:
    text = world.policy.read_text()

    def measured(claim: str) -> None:
        rules = f'{text}namespace = "team"\nclaim = "{claim}"\n'.replace("'''", '\\"\\"\\"')
        world.policy.write_text(
            f'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"sealed-local.toml" = """{rules}"""\n'
        )

    measured("data")
    world.run("open", "--device", DEVICE)
    world.run("close")
    assert str(world.broker.broker.store.stored(VOLUME).owner) == "spark (team/data)"
    measured("other")
    assert "belongs to another workload or claim" in world.run("open", status=6)
    world.policy.write_text(text)
    assert "belongs to another workload or claim" in world.run("open", status=6)


RECORDS, COPIES = RECORD_OFFSETS, (0, HEADER_BYTES)


def operate(world: World, *words: str, status: int = 0) -> str:
    """A verb of the broker's operator on the volume; answers what it printed."""
    world.printed.readouterr()
    assert broker_main(["volume", *words, "--dir", str(world.broker.directory.root)]) == status
    said = world.printed.readouterr()
    return said.out if status == 0 else said.out + said.err


def with_data(world: World) -> bytes:
    """A volume that was used, closed; answers its disk."""
    world.run("open", "--device", DEVICE)
    world.machine.write_file(b"kept")
    world.run("close")
    return bytes(world.machine.disk.content)


def spoil(world: World, *offsets: int) -> None:
    """One bad sector at each place."""
    image = bytearray(world.machine.disk.content)
    for offset in offsets:
        image[offset : offset + 4096] = b"\xff" * 4096
    world.machine.disk.show(bytes(image))


def assert_opens_with_the_data(world: World) -> None:
    world.run("open", "--device", DEVICE)
    assert world.machine.read_file() == b"kept"
    world.run("close")


def test_a_bad_sector_in_both_header_copies_is_repaired_by_the_brokers_copy(world: World) -> None:
    before = with_data(world)
    spoil(world, *(offset + 4096 for offset in COPIES))
    assert "sealed-local guest repair --volume pvc-1" in world.run("open", status=3)
    record = world.broker.broker.store.volume(VOLUME)
    said = world.run("repair")
    assert said.count("is the one that the register holds") == 2
    now = world.broker.broker.store.volume(VOLUME)
    assert apart_from_revisions(now) == apart_from_revisions(record), "a header needs nobody's word, changes no state"
    assert bytes(world.machine.disk.content) == before
    assert world.actions()[-2:] == ["header-released", "lease-released"]
    assert_opens_with_the_data(world)
    released = world.actions().count("header-released")
    spoil(world, COPIES[0] + 4096)
    world.run("repair")
    assert world.actions().count("header-released") == released, "with one good copy the broker's is not needed"
    assert_opens_with_the_data(world)


def test_state_records_that_can_not_be_read_are_written_anew_after_a_persons_word(world: World) -> None:
    old = with_data(world)
    assert_opens_with_the_data(world)
    spoil(world, *RECORDS)
    spoiled = bytes(world.machine.disk.content)
    for verb in ("open", "repair"):
        said = world.run(verb, "--device", DEVICE, status=3)
        assert "broker volume accept pvc-1 --unread --reason TEXT; then write one: sealed-local guest repair" in said
    assert bytes(world.machine.disk.content) == spoiled, "without a person's word nothing is written"
    words = ("accept", VOLUME, "--unread", "--reason", "two bad sectors")
    record = world.broker.broker.store.volume(VOLUME)
    assert "no record that can be read" in operate(world, *words, status=1)
    assert world.broker.broker.store.volume(VOLUME) == record, "and the operator has to look first"
    assert "now a guest writes its record" in operate(world, *words, "--yes")
    assert "Now write its record: sealed-local guest repair" in world.run("open", "--device", DEVICE, status=3)
    assert "would open it by header copy A" in world.run("repair", "--device", DEVICE)
    assert_opens_with_the_data(world)
    accepted = world.broker.broker.store.volume(VOLUME)
    assert (accepted.unwritten, accepted.generation, accepted.accepted[-1].reason) == (False, 5, "two bad sectors")
    world.machine.disk.show(old)
    assert "generation 2" in world.run("open", "--device", DEVICE, status=5), "what was given up stays so"


def test_a_head_of_which_nothing_is_left_is_written_anew(world: World) -> None:
    with_data(world)
    spoil(world, *RECORDS, *(offset + 4096 for offset in COPIES))
    operate(world, "accept", VOLUME, "--unread", "--reason", "a bad disk", "--yes")
    world.run("repair", "--device", DEVICE)
    assert_opens_with_the_data(world)


def test_a_repair_that_is_not_needed_writes_nothing(world: World) -> None:
    assert "there is nothing to repair" in world.run("repair", "--device", DEVICE, status=10)
    before = with_data(world)
    writes = len(world.machine.disk.seen)
    world.run("repair")
    assert (bytes(world.machine.disk.content), len(world.machine.disk.seen)) == (before, writes)
    world.run("open")
    assert "is open; close it first" in world.run("repair", status=10)


def test_a_repair_makes_no_older_disk_the_volumes(world: World) -> None:
    older = with_data(world)
    assert_opens_with_the_data(world)
    world.machine.disk.show(older)
    assert "generation 2" in world.run("repair", status=5)
    spoil(world, *(offset + 4096 for offset in COPIES))
    assert "generation 2" in world.run("repair", status=5)
    world.machine.disk.show(bytes(len(older)))
    assert "not formatted again" in world.run("repair", "--device", DEVICE, status=4)
    text = world.policy.read_text()
    world.machine.disk.show(older)
    world.policy.write_text(f'{text}access = "ro"\n')
    assert "a repair writes" in world.run("repair", status=10)
