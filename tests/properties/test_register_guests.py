"""Guests that die at any step, race, repeat lost requests; a host that shows any disk it ever saw: the register holds.

Each guest is a generator that stops before every exchange with the register or the disk. Hypothesis decides who goes on,
who dies, whose answers are lost, and which old disk the host puts back. The disk is a register-side model: which volume
header it has (the nonce of the format that made it), which generation, and whether a mounted guest wrote data there.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from csi.broker import rules as register
from csi.core.errors import Busy, Refused
from csi.core.sealed import Profile
from csi.kbs.register import Announcement, VolumeRecord, VolumeState

PAYLOAD = 4096
LIFETIME = 10
EPOCH = "0e" * 16


@dataclass(frozen=True)
class Disk:
    """What a device shows: `header` names the format that made it, `shown` the open that wrote its newest record;
    `history` the sessions whose data it holds.
    """

    header: str | None = None
    shown: Announcement | None = None
    history: tuple[str, ...] = ()


@dataclass
class World:
    """The one record, the device as the host shows it now, and all it ever was."""

    record: VolumeRecord = field(default_factory=lambda: register.allocate("v", Profile.XTS))
    disk: Disk = field(default_factory=Disk)
    now: int = 0
    seen: list[Disk] = field(default_factory=list)
    committed_data: tuple[str, ...] = ()
    """Sessions in the order in which their opens were committed: what a volume that is not rolled back holds."""
    session_base: tuple[str, ...] = ()
    """What the disk held when the open that is committed now began: the start of the current session."""
    alone: bool = False
    """Whether guests come one after the other; only then is there one truth about the data."""
    active_since: bool = False
    formats_allowed_after_active: int = 0

    def write(self, disk: Disk) -> None:
        self.disk = disk
        self.seen.append(disk)


class Untrusted(Exception):
    """The guest refuses what the host shows."""


Step = Generator[None, None, None]


def guest(world: World, name: str, measurement: str, repeats: int) -> Step:
    """One guest's life: open; format or raise the generation; mount and write."""
    yield
    record = world.record
    if record.state in (VolumeState.ALLOCATED, VolumeState.FORMATTING):
        record = yield from format_volume(world, record, name, measurement, repeats)
    else:
        record = yield from open_volume(world, record, name, repeats)
    yield
    # Mounted: data is written as long as the device is the one this guest opened.
    world.committed_data = (*world.committed_data, name)
    world.write(replace(world.disk, history=(*world.disk.history, name)))


def format_volume(
    world: World, record: VolumeRecord, name: str, measurement: str, repeats: int
) -> Generator[None, None, VolumeRecord]:
    base = record.revision
    for _ in range(repeats):
        answer = register.begin_format(
            world.record,
            revision=base,
            nonce=name,
            payload_bytes=PAYLOAD,
            measurement=measurement,
            epoch=EPOCH,
            now_unix=world.now,
            lifetime_seconds=LIFETIME,
        )
        if world.active_since:
            world.formats_allowed_after_active += 1
        world.record = answer
        yield
    granted = answer
    world.write(Disk(header=name, shown=Announcement(generation=1, nonce=name, epoch=EPOCH)))
    yield
    for _ in range(repeats):
        answer = register.commit_format(
            world.record,
            revision=granted.revision,
            nonce=name,
            measurement=measurement,
            header_sha256=name,
            payload_bytes=PAYLOAD,
        )
        world.record = answer
        world.active_since = True
        yield
    return answer


def open_volume(world: World, record: VolumeRecord, name: str, repeats: int) -> Generator[None, None, VolumeRecord]:
    found = world.disk
    if found.header != record.header_sha256 or found.shown is None or not record.knows(found.shown):
        raise Untrusted
    if world.alone:
        # Accepted: it is the current session's disk, or the one that this session started from. Nothing older.
        assert found.history[: len(world.session_base)] == world.session_base
        assert len(found.history) - len(world.session_base) <= 1
    yield
    base, generation = record.revision, record.announced + 1
    for _ in range(repeats):
        answer = register.begin_open(world.record, revision=base, nonce=name, generation=generation, epoch=EPOCH)
        world.record = answer
        yield
    announced = answer
    # The guest writes into what it has opened; the host may show another disk meanwhile, which this puts aside.
    world.write(replace(found, shown=announced.candidates[-1]))
    yield
    for _ in range(repeats):
        answer = register.commit_open(world.record, revision=announced.revision, nonce=name, generation=generation)
        world.record, world.session_base = answer, found.history
        yield
    return answer


def run(world: World, name: str, steps: int = 20) -> None:
    """A guest that lives for so many steps."""
    life = guest(world, name, "m", repeats=1)
    for _ in range(steps):
        if next(life, "end") == "end":
            return


def test_the_disk_of_a_guest_that_died_does_not_pass_for_what_another_one_committed() -> None:
    world = World()
    run(world, "first")
    honest, early = world.disk, next(disk for disk in world.seen if disk.header and not disk.history)
    world.disk = early
    run(world, "dies after writing its state record", steps=4)
    kept = world.disk
    assert (kept.shown and kept.shown.generation, kept.history) == (2, ())
    world.disk = honest
    run(world, "second")
    assert world.disk.history == ("first", "second")
    world.disk = kept
    with pytest.raises(Untrusted):
        run(world, "third")


class Guests(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.guests: dict[str, Step] = {}
        self.started = 0

    @rule(measurement=st.sampled_from(["m", "m", "m", "other"]), repeats=st.integers(1, 3))
    def start(self, measurement: str, repeats: int) -> None:
        self.started += 1
        name = f"guest-{self.started}"
        self.guests[name] = guest(self.world, name, measurement, repeats)

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), steps=st.integers(1, 12))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.guests)))
        try:
            for _ in range(steps):
                next(self.guests[name])
        except (StopIteration, Busy, Refused, Untrusted):
            del self.guests[name]

    @precondition(lambda self: self.guests)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        del self.guests[data.draw(st.sampled_from(sorted(self.guests)))]

    @precondition(lambda self: self.world.seen)
    @rule(data=st.data())
    def host_shows_an_old_disk(self, data: st.DataObject) -> None:
        self.world.disk = data.draw(st.sampled_from(self.world.seen))

    @rule(seconds=st.integers(1, LIFETIME + 1))
    def time_passes(self, seconds: int) -> None:
        self.world.now += seconds

    @precondition(lambda self: self.world.record.state is VolumeState.FORMATTING)
    @rule()
    def operator_resets(self) -> None:
        self.world.record = register.reset(self.world.record)

    @invariant()
    def nobody_formats_what_was_active(self) -> None:
        assert self.world.formats_allowed_after_active == 0
        if self.world.active_since:
            assert self.world.record.state is VolumeState.ACTIVE

    @invariant()
    def the_record_is_whole(self) -> None:
        record = self.world.record
        assert (record.grant is not None) == (record.state is VolumeState.FORMATTING)
        assert (record.header_sha256 is not None) == (record.generation > 0) == (record.state is VolumeState.ACTIVE)
        assert record.announced >= max([record.generation, *(item.generation for item in record.candidates)])


class HonestHost(Guests):
    """Without a lying host, a volume with one guest at a time never becomes unusable and never loses a session."""

    @rule(steps=st.integers(0, 12), repeats=st.integers(1, 2))
    def start(self, steps: int, repeats: int) -> None:  # type: ignore[override]
        self.started += 1
        life = guest(self.world, f"guest-{self.started}", "m", repeats)
        for _ in range(steps):
            try:
                next(life)
            except StopIteration:
                return
            except Refused:
                # The only way to be refused is a format that nobody finished in time, which an operator resets.
                assert self.world.record.state is VolumeState.FORMATTING
                return

    @precondition(lambda self: False)
    @rule()
    def host_shows_an_old_disk(self) -> None:  # type: ignore[override]
        pass

    @invariant()
    def no_session_is_lost(self) -> None:
        if self.world.record.state is VolumeState.ACTIVE:
            assert self.world.disk.history == self.world.committed_data


class RollingHost(HonestHost):
    """One guest at a time, and a host that puts back any disk it ever saw: what a guest accepts is never older than the
    start of the last committed session. (Replay inside that session is what the format does not detect.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.world.alone = True

    @rule(steps=st.integers(0, 12), repeats=st.just(1))
    def start(self, steps: int, repeats: int) -> None:  # type: ignore[override]
        try:
            super().start(steps, repeats)
        except Untrusted:
            assert self.world.disk != self.world.seen[-1]

    @precondition(lambda self: self.world.seen)
    @rule(data=st.data())
    def host_shows_an_old_disk(self, data: st.DataObject) -> None:
        Guests.host_shows_an_old_disk(self, data)

    @invariant()
    def no_session_is_lost(self) -> None:
        """Not promised here."""


class WildRequests(RuleBasedStateMachine):
    """Whatever anyone asks from whatever old reading: each answer is compare-and-set, or the repeat of the last change."""

    nonces = st.sampled_from("abcdefghijkl")

    def __init__(self) -> None:
        super().__init__()
        self.record = register.allocate("v", Profile.XTS)
        self.readings = [self.record]
        self.last_request: tuple[object, ...] = ()
        self.was_active = False
        self.announced: dict[int, str] = {}

    @initialize(active=st.booleans())
    def begin(self, active: bool) -> None:
        if active:
            self.begin_active()

    def begin_active(self) -> None:
        """Random requests alone get here seldom."""
        granted = register.begin_format(
            self.record,
            revision=1,
            nonce="a",
            payload_bytes=PAYLOAD,
            measurement="m",
            epoch=EPOCH,
            now_unix=0,
            lifetime_seconds=LIFETIME,
        )
        self.record = register.commit_format(
            granted, revision=2, nonce="a", measurement="m", header_sha256="x", payload_bytes=PAYLOAD
        )
        self.last_request = (2, "commit-format", "a", "x")
        self.readings.append(self.record)
        self.was_active = True

    def ask(self, change: Callable[[], VolumeRecord], revision: int, *request: object) -> VolumeRecord | None:
        """Make a request; the new record if there is one."""
        try:
            answer = change()
        except (Busy, Refused):
            return None
        if answer == self.record:
            assert (revision, *request) == self.last_request, "only the very last change may be repeated"
            return None
        assert revision == self.record.revision, "a change was made from an old reading"
        assert answer.revision == self.record.revision + 1
        self.last_request = (revision, *request)
        self.record = answer
        self.readings.append(answer)
        return answer

    @rule(data=st.data(), nonce=nonces, measurement=st.sampled_from(["m", "n"]), now=st.integers(0, 2 * LIFETIME))
    def begin_format(self, data: st.DataObject, nonce: str, measurement: str, now: int) -> None:
        revision = data.draw(st.sampled_from(self.readings)).revision
        before = self.record
        answer = self.ask(
            lambda: register.begin_format(
                self.record,
                revision=revision,
                nonce=nonce,
                payload_bytes=PAYLOAD,
                measurement=measurement,
                epoch=EPOCH,
                now_unix=now,
                lifetime_seconds=LIFETIME,
            ),
            revision,
            "begin-format",
            nonce,
            measurement,
        )
        if answer is not None:
            assert not self.was_active
            if before.grant is not None:
                assert before.grant.measurement == measurement
                assert now <= before.grant.deadline_unix

    @rule(data=st.data(), nonce=nonces, measurement=st.sampled_from(["m", "n"]), header=st.sampled_from(["x", "y"]))
    def commit_format(self, data: st.DataObject, nonce: str, measurement: str, header: str) -> None:
        revision = data.draw(st.sampled_from(self.readings)).revision
        before = self.record
        answer = self.ask(
            lambda: register.commit_format(
                self.record,
                revision=revision,
                nonce=nonce,
                measurement=measurement,
                header_sha256=header,
                payload_bytes=PAYLOAD,
            ),
            revision,
            "commit-format",
            nonce,
            header,
        )
        if answer is not None:
            assert not self.was_active
            assert before.grant is not None
            assert (before.grant.nonce, before.grant.measurement) == (nonce, measurement)
            self.was_active = True

    @rule(data=st.data(), nonce=nonces, up=st.integers(-1, 3))
    def begin_open(self, data: st.DataObject, nonce: str, up: int) -> None:
        reading = data.draw(st.sampled_from(self.readings))
        generation = reading.announced + up
        answer = self.ask(
            lambda: register.begin_open(
                self.record, revision=reading.revision, nonce=nonce, generation=generation, epoch=EPOCH
            ),
            reading.revision,
            "begin-open",
            nonce,
            generation,
        )
        if answer is not None:
            assert generation > max(self.announced, default=1), "a generation was announced twice"
            self.announced[generation] = nonce

    @rule(data=st.data(), nonce=nonces, up=st.integers(-1, 1))
    def commit_open(self, data: st.DataObject, nonce: str, up: int) -> None:
        reading = data.draw(st.sampled_from(self.readings))
        generation = reading.announced + up
        answer = self.ask(
            lambda: register.commit_open(self.record, revision=reading.revision, nonce=nonce, generation=generation),
            reading.revision,
            "commit-open",
            nonce,
            generation,
        )
        if answer is not None:
            assert generation == max(self.announced)
            assert self.announced[generation] == nonce

    @rule(change=st.sampled_from([register.reset, register.retire, register.reinstate]))
    def operate(self, change: Callable[[VolumeRecord], VolumeRecord]) -> None:
        try:
            answer = change(self.record)
        except Refused:
            return
        if answer != self.record:
            assert answer.revision == self.record.revision + 1
            self.last_request = ()
            self.record = answer
            self.readings.append(answer)
        assert not (self.was_active and answer.state in (VolumeState.ALLOCATED, VolumeState.FORMATTING))


SETTINGS = settings(max_examples=200, stateful_step_count=50)
TestGuests = Guests.TestCase
TestGuests.settings = SETTINGS
TestHonestHost = HonestHost.TestCase
TestHonestHost.settings = SETTINGS
TestRollingHost = RollingHost.TestCase
TestRollingHost.settings = SETTINGS
TestWildRequests = WildRequests.TestCase
TestWildRequests.settings = SETTINGS
