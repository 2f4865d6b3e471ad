"""The guest's core, killed at every point of a format and of an open, on a disk that loses what was not flushed.

Whatever happened, the next guest mounts the volume with the data of before, and a volume that was committed is never
formatted again. A host that puts an older disk back is refused, and nothing is written to what it shows.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi.broker import rules as register
from csi.core.errors import (
    Blanked,
    Busy,
    CommandError,
    InUse,
    LiveMismatch,
    Refused,
    RolledBack,
    Tampered,
    ToolFailed,
    Untrusted,
)
from csi.core.sealed import Profile
from csi.guest.policy import FormatRule, GuestAccess
from csi.guest.seal import keys, state_record
from csi.guest.seal.mapping import Mapping, mapping_name
from csi.guest.seal.state_record import StateRecord
from csi.kbs.register import VolumeRecord, VolumeState
from tests.fakes.sealed_guest import (
    HEADER_BYTES,
    PAYLOAD_OFFSET,
    RECORD_OFFSETS,
    SECRET,
    VOLUME,
    Died,
    Disk,
    Fate,
    Machine,
    ModelRegister,
    small_format,
)

ENOUGH = 200


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_format():
        yield


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(str(tmp_path))


def formatted(machine: Machine, *files: bytes) -> Machine:
    """A volume with one session for each file, closed in order."""
    for file in files or (b"",):
        machine.open()
        machine.write_file(file)
        machine.close()
    return machine


def live_until(machine: Machine, ticks: int | None, act: Callable[[Machine], object], fate: Fate) -> bool:
    """Let a guest act for so many ticks; returns whether it got through."""
    machine.fuse = ticks
    try:
        act(machine)
    except Died:
        machine.end(fate)
        return False
    machine.fuse = None
    return True


def every_death(tmp_path: Path, prepare: Callable[[Machine], object], fate: Fate) -> Iterator[Machine]:
    """Machines whose guest died after 0, 1, 2, ... ticks of an `open`, up to the one that got through."""
    for ticks in range(ENOUGH):
        machine = Machine(str(tmp_path))
        prepare(machine)
        through = live_until(machine, ticks, Machine.open, fate)
        yield machine
        if through:
            assert ticks > 10, "the guest had no effect at all"
            return
    raise AssertionError("the guest never got through")


# Honest hosts


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
def test_a_guest_killed_at_any_point_of_a_format_is_followed_by_one_that_gets_through(
    tmp_path: Path, fate: Fate
) -> None:
    for machine in every_death(tmp_path, lambda _: None, fate):
        opened = machine.open()
        assert machine.record is not None
        assert (machine.record.state, opened.mount) == (VolumeState.ACTIVE, str(tmp_path))
        assert machine.read_file() == b""
        machine.write_file(b"written")
        machine.close()
        assert machine.open().formatted_now is False
        assert machine.read_file() == b"written"
        assert machine.made_on_active == 0


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
def test_a_guest_killed_at_any_point_of_an_open_leaves_the_data_of_before(tmp_path: Path, fate: Fate) -> None:
    for machine in every_death(tmp_path, lambda machine: formatted(machine, b"one", b"two"), fate):
        opened = machine.open()
        assert machine.record is not None
        assert machine.record.candidates == ()
        assert opened.generation == machine.record.generation >= 4
        assert (opened.formatted_now, machine.read_file(), machine.made_on_active) == (False, b"two", 0)


def test_a_second_guest_killed_while_it_writes_its_record_has_not_torn_the_only_good_one(tmp_path: Path) -> None:
    """The first one dies anywhere in its open, the second one anywhere in its own, and the disk tears what it can."""
    for first in range(0, ENOUGH, 2):
        got_through = False

        def prepare(machine: Machine, first: int = first) -> None:
            nonlocal got_through
            formatted(machine, b"one", b"two")
            got_through = live_until(machine, first, Machine.open, Fate.LOST)
            machine.close()

        for machine in every_death(tmp_path, prepare, Fate.FIRST_HALVES):
            machine.open()
            assert machine.read_file() == b"two"
        if got_through:
            return


@pytest.mark.parametrize("damaged", [0, HEADER_BYTES], ids=["A", "B"])
@pytest.mark.parametrize("fate", [Fate.KILLED, Fate.LOST, Fate.FIRST_HALVES, Fate.LAST_HALVES])
def test_a_guest_killed_while_it_mends_a_header_copy_leaves_the_other_one_whole(
    tmp_path: Path, fate: Fate, damaged: int
) -> None:
    def prepare(machine: Machine) -> None:
        formatted(machine, b"one")
        machine.disk.write(damaged + 5000, b"noise")
        machine.disk.flush()

    for machine in every_death(tmp_path, prepare, fate):
        machine.open()
        assert machine.read_file() == b"one"
        machine.close()
        assert machine.disk.content[:HEADER_BYTES] == machine.disk.content[HEADER_BYTES : 2 * HEADER_BYTES]


def test_a_guest_killed_at_any_point_of_a_close_has_closed_or_can_be_closed_again(tmp_path: Path) -> None:
    for ticks in range(ENOUGH):
        machine = Machine(str(tmp_path))
        machine.open()
        machine.write_file(b"one")
        through = live_until(machine, ticks, Machine.close, Fate.KILLED)
        machine.close()
        assert (machine.mounted, machine.live) == ([], {})
        machine.open()
        assert machine.read_file() == b"one"
        if through:
            return


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deaths=st.lists(st.tuples(st.integers(0, 45), st.sampled_from(Fate)), max_size=6), files=st.integers(0, 2))
def test_however_many_guests_die_the_last_one_has_every_session_and_older_disks_are_refused(
    tmp_path: Path, deaths: list[tuple[int, Fate]], files: int
) -> None:
    machine = Machine(str(tmp_path))
    expected = b""
    for number in range(files):
        expected = f"session {number}".encode()
        formatted(machine, expected)
    for ticks, fate in deaths:
        if live_until(machine, ticks, Machine.open, fate):
            assert machine.read_file() == expected
            expected = f"after {ticks} ticks".encode()
            machine.write_file(expected)
            machine.end(fate)
    machine.open()
    assert (machine.read_file(), machine.made_on_active) == (expected, 0)
    machine.close()
    machine.open()
    machine.close()
    for image in set(machine.disk.seen[: machine.safe_from]):
        refused(machine, image, RolledBack, Tampered, Blanked)


# Hostile hosts


def refused(machine: Machine, image: bytes, *kinds: type[Exception]) -> str:
    """Show an image: the open must fail in one of these ways, with nothing written, mapped or changed in the register."""
    machine.disk.show(image)
    record = machine.record
    with pytest.raises(kinds) as caught:
        machine.open()
    assert type(caught.value) in kinds
    assert bytes(machine.disk.content) == image
    assert (machine.live, machine.mounted, machine.record) == ({}, [], record)
    return str(caught.value)


def test_every_disk_older_than_the_last_committed_open_is_refused(machine: Machine) -> None:
    formatted(machine, b"one", b"two", b"three")
    newest, older = bytes(machine.disk.content), machine.disk.seen[: machine.safe_from]
    assert len(set(older)) > 8
    told = {image: refused(machine, image, RolledBack, Tampered, Blanked) for image in set(older)}
    assert "generation 2" in "".join(told.values())
    machine.disk.show(newest)
    machine.open()
    assert machine.read_file() == b"three"


def test_what_is_not_older_than_the_last_committed_open_is_what_the_format_does_not_tell_apart(
    machine: Machine,
) -> None:
    """Said in the threat model: the session since the last committed open can be undone as a whole."""
    formatted(machine, b"one", b"two")
    start = machine.disk.seen[machine.safe_from :]
    assert bytes(machine.disk.content) in start
    machine.disk.show(start[0])
    machine.open()
    assert machine.read_file() == b"one"


def test_an_older_payload_under_the_newest_head_is_not_noticed_and_so_freshness_says_head(machine: Machine) -> None:
    """Said in the threat model, too: nothing binds the payload's blocks to the generation."""
    formatted(machine, b"one")
    old = bytes(machine.disk.content)
    formatted(machine, b"two")
    machine.disk.show(bytes(machine.disk.content[:PAYLOAD_OFFSET]) + old[PAYLOAD_OFFSET:])
    assert machine.open().freshness == "head"
    assert machine.read_file() == b"one"


def test_disks_of_guests_that_died_in_an_open_never_pass_for_what_was_committed_later(tmp_path: Path) -> None:
    for machine in every_death(tmp_path, lambda machine: formatted(machine, b"one"), Fate.LOST):
        machine.close()
        kept = bytes(machine.disk.content)
        formatted(machine, b"two")
        formatted(machine, b"three")
        refused(machine, kept, RolledBack)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(
        st.one_of(
            st.integers(0, PAYLOAD_OFFSET - 1),
            st.sampled_from(RECORD_OFFSETS).flatmap(lambda start: st.integers(start, start + 4095)),
        ),
        min_size=1,
        max_size=4,
    ),
    value=st.integers(1, 255),
)
def test_a_changed_head_opens_with_the_right_data_or_not_at_all(tmp_path: Path, places: list[int], value: int) -> None:
    machine = Machine(str(tmp_path))
    formatted(machine, b"one", b"two")
    image = bytearray(machine.disk.content)
    for place in places:
        image[place] ^= value
    machine.disk.show(bytes(image))
    try:
        machine.open()
    except Untrusted:
        assert bytes(machine.disk.content) == bytes(image)
    else:
        assert machine.read_file() == b"two"
    assert machine.made_on_active == 0


def test_a_blanked_disk_is_never_formatted_again(machine: Machine) -> None:
    formatted(machine, b"one")
    assert "It is not formatted again" in refused(machine, bytes(len(machine.disk.content)), Blanked)
    assert machine.made_on_active == 0


def test_a_mapping_with_another_table_is_closed_and_nothing_is_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    formatted(machine, b"one")
    image, mapping = bytes(machine.disk.content), machine.mapping

    def lie(name: str) -> Mapping | None:
        live = machine.live.get(name)
        if live is not None:
            live.table = live.table.replace("aes-xts-plain64", "cipher_null-ecb")
        return mapping(name)

    monkeypatch.setattr(machine, "mapping", lie)
    assert "cipher_null-ecb" in refused(machine, image, LiveMismatch)


def test_a_live_mapping_of_another_device_under_the_volumes_name_is_not_used(machine: Machine) -> None:
    formatted(machine, b"one")
    machine.open()
    live = machine.live[mapping_name(VOLUME)]
    live.table = live.table.replace("8:16", "8:32")
    with pytest.raises(LiveMismatch):
        machine.open()
    assert len(machine.mounted) == 1


# What else a guest promises


def test_an_open_volume_is_opened_again_without_an_effect(machine: Machine) -> None:
    first = machine.open()
    record, seen = machine.record, len(machine.disk.seen)
    again = machine.open()
    assert (first.mounted_now, again.mounted_now) == (True, False)
    assert (again.mount, again.generation, again.formatted_now) == (first.mount, 2, False)
    assert (machine.record, len(machine.disk.seen), len(machine.mounted)) == (record, seen, 1)


def test_an_open_volume_is_not_mounted_at_a_second_place_or_in_another_mode(machine: Machine, tmp_path: Path) -> None:
    machine.open()
    with pytest.raises(InUse, match="close it first"):
        machine.open(mount=str(tmp_path / "other"))
    with pytest.raises(InUse, match="mounted writable"):
        machine.open(access=GuestAccess.READ_ONLY)
    assert len(machine.mounted) == 1


def test_an_occupied_mount_point_is_refused_before_anything_is_formatted(machine: Machine) -> None:
    machine.open()
    occupied = machine.mounted[0]
    machine.end(Fate.LOST)
    machine.record, machine.disk = None, Disk.blank()
    machine.mounted.append(occupied)
    with pytest.raises(InUse, match="is a mount of"):
        machine.open()
    assert not any(machine.disk.content)
    assert machine.record is not None
    assert machine.record.state is VolumeState.ALLOCATED


def test_a_mount_point_behind_a_link_is_occupied_by_what_is_mounted_where_it_leads(
    machine: Machine, tmp_path: Path
) -> None:
    """The kernel lists mounts by their real paths; the policy may name a link, such as /var/run."""
    machine.open()
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    occupied = machine.mounted[0]
    machine.end(Fate.LOST)
    machine.mounted.append(occupied)
    with pytest.raises(InUse, match="is a mount of"):
        machine.open(mount=str(link))


def test_a_read_only_guest_writes_nothing_at_all(machine: Machine) -> None:
    formatted(machine, b"one")
    machine.disk.write(HEADER_BYTES + 5000, b"noise")
    machine.disk.flush()
    before, record = hashlib.sha256(machine.disk.content).digest(), machine.record
    opened = machine.open(access=GuestAccess.READ_ONLY)
    assert (opened.read_only, opened.generation, machine.read_file()) == (True, 2, b"one")
    assert {"ro", "noload"} & machine.mounted[0].options == {"ro"}, "a journal is never skipped"
    machine.close()
    assert (hashlib.sha256(machine.disk.content).digest(), machine.record) == (before, record)


@pytest.mark.parametrize(
    "changes", [{"format": FormatRule.NEVER}, {"access": GuestAccess.READ_ONLY}], ids=["never", "ro"]
)
def test_a_policy_that_forbids_it_formats_nothing(machine: Machine, changes: dict[str, object]) -> None:
    with pytest.raises(Refused, match="does not allow"):
        machine.open(**changes)
    assert not any(machine.disk.content)
    assert machine.record is not None
    assert machine.record.state is VolumeState.ALLOCATED


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
def test_a_format_that_an_operator_reset_begins_anew_wherever_it_had_ended(tmp_path: Path, fate: Fate) -> None:
    resets = 0
    for machine in every_death(tmp_path, lambda _: None, fate):
        if machine.record is not None and machine.record.state is VolumeState.FORMATTING:
            machine.record = register.reset(machine.record)
            resets += 1
            assert machine.open().formatted_now is True
            assert machine.read_file() == b""
    assert resets > 10


def test_a_register_restored_from_before_the_format_formats_nothing_that_was_ever_mounted(tmp_path: Path) -> None:
    """Nobody's data is lost although the register permits it: the disk forbids it."""
    for machine in every_death(tmp_path, lambda _: None, Fate.KEPT):
        mounted = machine.record is not None and machine.record.generation > 1
        if machine.mounted:
            machine.write_file(b"one")
        machine.close()
        machine.record = register.allocate(VOLUME, Profile.XTS)
        if mounted:
            refused(machine, bytes(machine.disk.content), Refused)
        else:
            with contextlib.suppress(Refused):
                assert machine.open().formatted_now is True


def test_a_guest_that_another_one_overtook_does_not_write_over_its_record(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's record lies where this one's would go; it may be the only good one."""
    formatted(machine, b"one")
    begin_open, used = ModelRegister.begin_open, keys.derive(SECRET, VOLUME, 1)

    def overtaken(self: ModelRegister, record: VolumeRecord, **wish: Any) -> VolumeRecord:
        answer = begin_open(self, record, **wish)
        found = state_record.decode(bytes(machine.disk.content[RECORD_OFFSETS[0] :][:4096]), used, VOLUME)
        assert isinstance(found, StateRecord)
        assert (found.generation, wish["generation"]) == (2, 3)
        machine.disk.write(
            RECORD_OFFSETS[1], state_record.encode(replace(found, sequence=3, generation=5), used, VOLUME)
        )
        return answer

    monkeypatch.setattr(ModelRegister, "begin_open", overtaken)
    with pytest.raises(Busy, match="another guest opened volume pvc-1 at this moment"):
        machine.open()
    kept = state_record.decode(bytes(machine.disk.content[RECORD_OFFSETS[1] :][:4096]), used, VOLUME)
    assert isinstance(kept, StateRecord)
    assert (kept.generation, machine.live) == (5, {})


def test_a_mapping_that_is_writable_where_the_policy_says_read_only_is_not_used(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    formatted(machine, b"one")
    monkeypatch.setattr(machine, "is_read_only", lambda _: False)
    with pytest.raises(LiveMismatch, match="is writable, and the policy says read-only"):
        machine.open(access=GuestAccess.READ_ONLY)
    assert (machine.live, machine.mounted) == ({}, [])


def test_a_journal_that_a_read_only_guest_can_not_replay_is_told_with_the_way_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CommandError(["mount"], 32, "", "mount: write access unavailable, cannot proceed")

    formatted(machine, b"one")
    monkeypatch.setattr(machine, "mount", fail)
    with pytest.raises(Refused, match=r"write access unavailable.*open it once by a policy that says rw"):
        machine.open(access=GuestAccess.READ_ONLY)
    with pytest.raises(CommandError):
        machine.open()
    assert machine.live == {}


def test_a_header_that_the_allow_list_refuses_is_never_committed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = b"LUKS, but not as we make it".ljust(HEADER_BYTES, b"\0")
    monkeypatch.setattr(machine, "make_header", lambda *_, **__: another)
    with pytest.raises(Tampered):
        machine.open()
    assert machine.record is not None
    assert machine.record.state is VolumeState.FORMATTING
    assert not any(machine.disk.content[: RECORD_OFFSETS[0]])


def test_a_filesystem_that_does_not_check_or_mount_costs_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit comes last: the state of before stays the committed one, and still opens."""
    formatted(machine, b"one")
    before, record = bytes(machine.disk.content), machine.record
    assert record is not None

    def fails(*_: Any, **__: Any) -> None:
        raise CommandError(["e2fsck", "-p"], 4, "", "UNEXPECTED INCONSISTENCY")

    for step in ("check_filesystem", "mount"):
        with monkeypatch.context() as patched:
            patched.setattr(machine, step, fails)
            with pytest.raises(CommandError):
                machine.open()
        assert machine.record is not None
        assert (machine.record.head, machine.live, machine.mounted) == (record.head, {}, [])
    machine.disk.show(before)
    machine.open()
    assert machine.read_file() == b"one"


def test_a_commit_that_fails_leaves_nothing_mounted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    formatted(machine, b"one")

    def busy(*_: Any, **__: Any) -> VolumeRecord:
        raise Busy("another guest")

    with monkeypatch.context() as patched:
        patched.setattr(ModelRegister, "commit_open", busy)
        with pytest.raises(Busy):
            machine.open()
    assert (machine.live, machine.mounted) == ({}, [])
    machine.open()
    assert machine.read_file() == b"one"


def test_a_guest_whose_volume_another_one_opened_since_is_told(machine: Machine) -> None:
    formatted(machine, b"one")
    machine.open()
    assert machine.record is not None
    other = register.begin_open(
        machine.record,
        revision=machine.record.revision,
        nonce="0f" * 32,
        generation=machine.record.announced + 1,
        epoch=machine.epoch,
    )
    for record in (
        other,
        register.commit_open(other, revision=other.revision, nonce="0f" * 32, generation=other.announced),
    ):
        machine.record = record
        with pytest.raises(RolledBack, match="another guest has opened it since"):
            machine.open()
        assert machine.mounted, "what is to be saved is still there"


def test_a_write_that_did_not_reach_the_disk_is_told_at_the_close(machine: Machine) -> None:
    formatted(machine, b"one")
    machine.open()
    machine.lost_writes = 1
    with pytest.raises(ToolFailed, match=r"not all that was written is on the disk.*Input/output error.*It is closed"):
        machine.close()
    assert (machine.live, machine.mounted) == ({}, [])
    assert machine.close() is False


@pytest.mark.parametrize("word", ["ro", "shutdown", "emergency_ro"])
def test_a_filesystem_that_stopped_writing_is_told_at_the_close(machine: Machine, word: str) -> None:
    formatted(machine, b"one")
    machine.open()
    machine.mounted[:] = [replace(mount, super_options=frozenset({word})) for mount in machine.mounted]
    with pytest.raises(ToolFailed, match="stopped writing after an error"):
        machine.close()


def test_a_loss_is_told_though_the_volume_can_not_be_closed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    formatted(machine, b"one")
    machine.open()
    machine.lost_writes = 1

    def in_use(_: str) -> None:
        raise InUse("a process uses it")

    monkeypatch.setattr(machine, "unmount", in_use)
    with pytest.raises(ToolFailed, match=r"Input/output error.*it is not closed: a process uses it"):
        machine.close()
    with pytest.raises(InUse):
        machine.close()


def test_closing_what_was_opened_to_be_read_writes_nothing_back(machine: Machine) -> None:
    formatted(machine, b"one")
    machine.open(access=GuestAccess.READ_ONLY)
    machine.lost_writes = 1
    assert machine.close() is True


@pytest.mark.parametrize("bad", ["the guest's", "the broker's"])
def test_with_one_bad_generator_two_volumes_still_have_two_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    if bad == "the guest's":
        # Nonces are 32 bytes long, and two that are alike are refused before any key is made.
        monkeypatch.setattr(secrets, "token_bytes", lambda count: bytes(count) if count == 64 else os.urandom(count))
    found = set()
    for _ in range(2):
        machine = Machine(str(tmp_path), share=b"always the same, says the broker" if bad == "the broker's" else None)
        machine.open()
        found.add(machine.live[mapping_name(VOLUME)].key)
        machine.close()
    assert len(found) == 2
