"""Leases at a real broker: who has one keeps others out, and hears of it when it has one no more."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from csi.broker.liveness import Liveness
from csi.broker.main import main
from csi.core.errors import Busy, LeaseLost, Refused, Unavailable
from csi.core.sealed import Profile
from csi.guest.attest.kbs_client import BrokerRegister
from csi.guest.attest.lease_client import LeaseClient
from csi.guest.lease_note import LeaseNote, LeaseNotes, LeaseState, since_boot
from csi.guest.leases import Leases
from csi.guest.status import Notes
from csi.kbs.register import VolumeRecord
from tests.fakes.broker import POLICY, RunningBroker, leased, running_broker, without_lease
from tests.fakes.sealed_guest import Machine

VOLUME = "pvc-1"


class Clock:
    """A broker's clock that the test sets."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(tmp_path: Path, clock: Clock) -> Iterator[RunningBroker]:
    with running_broker(
        tmp_path / "broker", POLICY.replace("version = 1", "version = 1\nlease_seconds = 30")
    ) as running:
        running.broker.liveness = Liveness(clock)
        yield running


def opened(guest: BrokerRegister) -> VolumeRecord:
    return guest.open(VOLUME, Profile.XTS)[0]


def note_of(broker: RunningBroker, guest: BrokerRegister, **changes: object) -> LeaseNote:
    settings = broker.settings()
    note = LeaseNote(
        volume_id=VOLUME,
        mount="/data",
        url=settings.url,
        ca_pem=settings.ca_pem,
        timeout_seconds=5.0,
        signer_pem=guest.signer_pem(),
        secret=guest._leases[VOLUME],
        seconds=30,
        asked=since_boot(),
        go_on=False,
        supervised=False,
    )
    return replace(note, **changes)  # type: ignore[arg-type]


@pytest.fixture
def holder(broker: RunningBroker) -> Iterator[LeaseClient]:
    """A client of the lease of a guest that has one."""
    guest = broker.guest()
    leased(guest, opened(guest))
    client = LeaseClient(note_of(broker, guest))
    yield client
    client.close()


def test_a_lease_keeps_others_out_as_long_as_it_is_renewed(
    broker: RunningBroker, clock: Clock, holder: LeaseClient
) -> None:
    other = broker.guest()
    record = opened(other)
    for _ in range(3):
        clock.now += 29
        with pytest.raises(Busy, match=r"is open in another guest \(.*\), whose lease lasts 1 s more"):
            leased(other, record)
        assert holder.renew() == 30
    clock.now += 31
    leased(other, record)
    with pytest.raises(LeaseLost, match="another guest has opened the volume"):
        holder.renew()


def test_a_lease_that_ended_and_that_nobody_took_is_renewed(clock: Clock, holder: LeaseClient) -> None:
    clock.now += 3000
    assert holder.renew() == 30


def test_a_guest_that_closed_its_volume_lets_the_next_in_at_once(broker: RunningBroker, holder: LeaseClient) -> None:
    holder.release()
    other = broker.guest()
    leased(other, opened(other))
    holder.release()
    assert broker.broker.store.volume(VOLUME).lease is not None, "the other one's stays"


def test_after_a_restart_every_lease_lasts_its_whole_length(
    broker: RunningBroker, clock: Clock, holder: LeaseClient
) -> None:
    clock.now += 29
    broker.broker.liveness = Liveness(clock)
    clock.now += 29
    other = broker.guest()
    with pytest.raises(Busy, match="lasts 1 s more"):
        leased(other, opened(other))
    clock.now += 2
    leased(other, opened(other))


def test_a_guest_of_the_same_volume_that_knows_the_last_lease_takes_its_place(
    broker: RunningBroker, holder: LeaseClient
) -> None:
    """A guest whose `open` was killed comes again."""
    again = broker.guest()
    record = opened(again)
    with pytest.raises(Busy):
        leased(again, record, instead="0f" * 32)
    leased(again, record, instead=holder._secret)
    with pytest.raises(LeaseLost):
        holder.renew()


def test_an_operator_who_vouches_for_a_dead_guest_lets_the_next_in(
    broker: RunningBroker, holder: LeaseClient, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["volume", "end-lease", VOLUME, "--reason", "its VM is gone", "--dir", str(broker.directory.root)]
    assert main(words) == 1
    assert "Is it certainly dead? Then add --yes" in capsys.readouterr().err
    assert main([*words, "--yes"]) == 0
    entry = broker.broker.store.audit_entries()[-1].event
    assert (entry.action, entry.actor, entry.detail) == ("lease-ended", "operator", "reason=its VM is gone")
    other = broker.guest()
    leased(other, opened(other))
    with pytest.raises(LeaseLost):
        holder.renew()


def test_a_person_who_decides_against_the_holder_is_obeyed_after_the_holder_has_heard_of_it(
    broker: RunningBroker, clock: Clock, holder: LeaseClient
) -> None:
    words = ["volume", "hand-over", VOLUME, "--to", "spark", "--dir", str(broker.directory.root)]
    assert main(words) == 0
    other = broker.guest()
    with pytest.raises(Busy):
        leased(other, opened(other))
    with pytest.raises(LeaseLost, match="an operator has taken the lease of volume pvc-1 back"):
        holder.renew()
    holder.release()
    leased(other, opened(other))


def test_a_restored_register_lets_nobody_in_before_earlier_guests_have_heard_of_it(
    clock: Clock, tmp_path: Path
) -> None:
    root, kept = tmp_path / "broker", str(tmp_path / "kept")
    with running_broker(root) as broker:
        guest = broker.guest()
        leased(guest, opened(guest))
        note = note_of(broker, guest)
        assert main(["backup", kept, "--dir", str(root)]) == 0
    assert main(["restore", kept, "--dir", str(root)]) == 0
    with running_broker(root) as broker:
        broker.broker.liveness = Liveness(clock)
        client = LeaseClient(replace(note, url=broker.url))
        with pytest.raises(LeaseLost):
            client.renew()
        client.close()
        guest = broker.guest()
        with pytest.raises(Busy, match="the register was restored"):
            leased(guest, opened(guest))
        clock.now += 61
        leased(guest, opened(guest))


@pytest.mark.parametrize("action", ["renew", "release"])
def test_who_has_no_lease_learns_and_changes_nothing(broker: RunningBroker, holder: LeaseClient, action: str) -> None:
    before, guest = broker.broker.store.volumes(), broker.guest()
    opened(guest)
    guest.hold_lease(VOLUME, "0f" * 32)
    for volume in (VOLUME, "pvc-unknown"):
        client = LeaseClient(note_of(broker, guest, volume_id=volume))
        if action == "renew":
            with pytest.raises(LeaseLost, match=f"the lease of volume {volume} is not this guest's any more"):
                client.renew()
        else:
            client.release()
        client.close()
    assert broker.broker.store.volumes() == before


def test_no_change_is_made_without_the_lease(broker: RunningBroker, holder: LeaseClient) -> None:
    guest = broker.guest()
    record = opened(guest)
    with pytest.raises(Refused, match="was not taken; nothing is changed without"):
        guest.begin_format(record, nonce="1e" * 32, payload_bytes=4096)
    guest.hold_lease(VOLUME, "0f" * 32)
    with pytest.raises(LeaseLost):
        guest.begin_format(record, nonce="1e" * 32, payload_bytes=4096)
    without_lease(broker, VOLUME)
    with pytest.raises(LeaseLost):
        guest.begin_format(opened(guest), nonce="1e" * 32, payload_bytes=4096)


def test_a_proxy_can_not_tell_a_guest_that_it_lost_its_lease_nor_that_it_has_it(
    broker: RunningBroker, holder: LeaseClient
) -> None:
    guest = broker.guest()
    opened(guest)
    guest.hold_lease(VOLUME, holder._secret)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    client = LeaseClient(note_of(broker, guest, signer_pem=pem))
    with pytest.raises(Unavailable, match="can't be used"):
        client.renew()
    without_lease(broker, VOLUME)
    with pytest.raises(Unavailable, match="can't be used"):
        client.renew()
    client.close()


class CutOff(Machine):
    """A machine with an open volume that can be cut off from its disk."""

    def __init__(self, mount: str) -> None:
        super().__init__(mount)
        self.cut = threading.Event()

    def is_mapped(self, name: str) -> bool:
        return True

    def stop_writes(self, name: str) -> None:
        self.cut.set()

    def make_read_only(self, target: str) -> None:
        pass


def test_a_keeper_renews_and_cuts_the_volume_off_when_the_lease_is_another_ones(
    broker: RunningBroker, clock: Clock, tmp_path: Path
) -> None:
    broker.broker.policy = replace(broker.broker.policy, lease_seconds=5)
    guest = broker.guest()
    leased(guest, opened(guest))
    notes, machine = LeaseNotes(folder=tmp_path / "leases"), CutOff("/data")
    kept = Leases(machine=machine, notes=notes, opened=Notes(folder=tmp_path / "volumes"))
    note = note_of(broker, guest, seconds=5)
    notes.write(note)
    thread = threading.Thread(target=kept.keep, args=(note,))
    thread.start()
    while (now := notes.read(VOLUME)) is None or now.asked == note.asked:
        assert thread.is_alive()
    clock.now += 1_000_000
    other = broker.guest()
    leased(other, opened(other))
    assert machine.cut.wait(60)
    thread.join()
    lost = notes.read(VOLUME)
    assert lost is not None
    assert (lost.state, "another guest has opened the volume" in lost.text) == (LeaseState.LOST, True)
    assert "LEASE LOST" in notes.told(VOLUME)
