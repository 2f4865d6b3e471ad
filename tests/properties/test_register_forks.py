"""Backups, restores, deaths and a host that shows any disk it ever saw: no image of an abandoned branch opens.

The rules of the register and the guest's decision are the real ones. What is true is told apart from both: each image knows
the path of opens that wrote it, and the world knows the path that the register committed last.
"""

from collections.abc import Generator
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from csi.broker import rules as register
from csi.core.errors import Busy, Refused, RolledBack, SealedLocalError
from csi.core.sealed import PAYLOAD_OFFSET, Profile
from csi.guest import decide as plan
from csi.guest.decide import DiskView, Open
from csi.guest.seal import state_record
from csi.guest.seal.state_record import Slot, SlotState, StateRecord
from csi.kbs.register import VolumeRecord, VolumeState

PAYLOAD = 4096
HEADER = b"h" * 32


@dataclass(frozen=True)
class Image:
    """The bytes of a disk at one moment: its two slots, and the opens that wrote on it, the oldest first."""

    slots: tuple[Slot, Slot]
    path: tuple[str, ...]

    @property
    def newest(self) -> StateRecord:
        return max((slot for slot in self.slots if isinstance(slot, StateRecord)), key=lambda slot: slot.sequence)

    def written(self, record: StateRecord) -> "Image":
        slots = list(self.slots)
        slots[record.sequence % 2] = record
        return Image(slots=(slots[0], slots[1]), path=(*self.path, record.nonce.hex()))

    def view(self) -> DiskView:
        return DiskView(
            device_bytes=PAYLOAD_OFFSET + PAYLOAD,
            slots=self.slots,
            zero_but_slots=False,
            header=lambda _: HEADER,
            copies_equal=lambda: True,
        )


@dataclass
class World:
    """The register's record, and what is true of the volume."""

    record: VolumeRecord
    disk: Image
    epoch: int = 1
    nonces: int = 0
    head: tuple[str, ...] = ()
    """The path that is committed."""
    begun: frozenset[str] = frozenset()
    """Opens announced since, each by a guest that may have died with its record on the disk."""
    seen: list[Image] = field(default_factory=list)

    def new_nonce(self) -> str:
        self.nonces += 1
        return f"{self.nonces:064x}"

    def belongs(self, image: Image) -> bool:
        """Whether an image is of the branch that counts: the committed path, and after it only what was begun since."""
        return image.path[: len(self.head)] == self.head and set(image.path[len(self.head) :]) <= self.begun

    def opens(self, image: Image) -> bool:
        try:
            return isinstance(plan.decide(self.record, image.view(), may_format=True), Open)
        except SealedLocalError:
            return False

    def write(self, image: Image) -> None:
        self.disk = image
        self.seen.append(image)


def new_world() -> World:
    """A formatted volume that nobody has opened."""
    record = register.allocate("v", Profile.XTS)
    world = World(record=record, disk=Image(slots=(SlotState.ABSENT, SlotState.ABSENT), path=()))
    nonce, epoch = world.new_nonce(), f"{1:032x}"
    granted = register.begin_format(
        record,
        revision=1,
        nonce=nonce,
        payload_bytes=PAYLOAD,
        measurement="m",
        epoch=epoch,
        now_unix=0,
        lifetime_seconds=1,
    )
    world.record = register.commit_format(
        granted, revision=2, nonce=nonce, measurement="m", header_sha256=HEADER.hex(), payload_bytes=PAYLOAD
    )
    assert world.record.head is not None
    first = state_record.opened(state_record.intent(Profile.XTS, 1, PAYLOAD), HEADER, bytes(32), world.record.head)
    world.write(world.disk.written(first))
    world.head = world.disk.path
    return world


def guest(world: World) -> Generator[None, None, None]:
    """An open for writing; it stops before each exchange with the register or the disk, where it may die."""
    record, found = world.record, world.disk
    decision = plan.decide(record, found.view(), may_format=True)
    assert isinstance(decision, Open)
    assert world.belongs(found), "an image of another branch was opened"
    yield
    nonce, generation = world.new_nonce(), record.announced + 1
    wish = {"revision": record.revision, "nonce": nonce, "generation": generation, "epoch": f"{world.epoch:032x}"}
    record = world.record = register.begin_open(world.record, **wish)  # type: ignore[arg-type]
    world.begun |= {nonce}
    yield
    written = found.written(state_record.following(decision.found, record.candidates[-1]))
    world.write(written)
    yield
    world.record = register.commit_open(world.record, revision=record.revision, nonce=nonce, generation=generation)
    world.head, world.begun = written.path, frozenset()


class Forks(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.guests: list[Generator[None, None, None]] = []
        self.backups: list[tuple[VolumeRecord, tuple[str, ...]]] = []

    @initialize()
    def begin(self) -> None:
        self.world = new_world()
        self.announced: set[tuple[int, str, str]] = set()

    @rule(steps=st.integers(1, 4))
    def a_guest_opens(self, steps: int) -> None:
        self.guests.append(guest(self.world))
        self.go_on(self.guests[-1], steps)

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), steps=st.integers(1, 3))
    def a_guest_goes_on(self, data: st.DataObject, steps: int) -> None:
        self.go_on(data.draw(st.sampled_from(self.guests)), steps)

    def go_on(self, one: Generator[None, None, None], steps: int) -> None:
        try:
            for _ in range(steps):
                next(one)
        except (StopIteration, Busy, Refused, RolledBack):
            self.guests.remove(one)

    @rule(data=st.data())
    def the_host_shows_an_image(self, data: st.DataObject) -> None:
        self.world.disk = data.draw(st.sampled_from(self.world.seen))

    @rule()
    def a_backup_is_made(self) -> None:
        self.backups.append((self.world.record, self.world.head))

    @precondition(lambda self: self.backups)
    @rule(data=st.data())
    def a_backup_is_restored(self, data: st.DataObject) -> None:
        """The broker starts anew: no guest has a session with it any more."""
        record, head = data.draw(st.sampled_from(self.backups))
        self.guests.clear()
        world = self.world
        world.record, world.epoch = register.restored(record, 60), world.epoch + 1
        world.head, world.begun = head, frozenset()

    @rule(data=st.data())
    def an_operator_accepts(self, data: st.DataObject) -> None:
        world, image = self.world, data.draw(st.sampled_from(self.world.seen))
        before = world.record
        world.record = register.accept(before, image.newest.state, reason="r", now_unix=0)
        world.head, world.begun = image.path, frozenset()
        assert world.record.announced >= before.announced, "numbers went back"
        for other in world.seen:
            assert world.opens(other) == (other.newest.nonce == image.newest.nonce)

    @rule(data=st.data())
    def records_are_lost_and_written_anew_after_a_persons_word(self, data: st.DataObject) -> None:
        world, image = self.world, data.draw(st.sampled_from(self.world.seen))
        lost = Image(slots=data.draw(st.sampled_from(self.losses(image))), path=image.path)
        nonce, epoch = world.new_nonce(), f"{world.epoch:032x}"
        world.record = register.accept_unread(world.record, nonce=nonce, epoch=epoch, reason="r", now_unix=0)
        assert not any(world.opens(other) for other in [*world.seen, lost]), "a state that no disk shows opened one"
        decision = plan.repair(world.record, lost.view())
        assert decision.sequence is not None
        assert world.record.head is not None
        begun = state_record.intent(Profile.XTS, 1, PAYLOAD)
        head = world.record.head
        world.write(lost.written(state_record.rebuilt(begun, HEADER, bytes(32), head, sequence=decision.sequence)))
        world.head, world.begun = world.disk.path, frozenset()
        assert [other for other in world.seen if world.opens(other)] == [world.disk]
        assert plan.repair(world.record, world.disk.view()).sequence is None, "a repair that is repeated writes once"

    def losses(self, image: Image) -> list[tuple[Slot, Slot]]:
        """Both records, or only the newest one: then an older one is still there."""
        older = tuple(SlotState.INVALID if slot == image.newest else slot for slot in image.slots)
        return [(SlotState.INVALID, SlotState.INVALID), (SlotState.ABSENT, SlotState.INVALID), (older[0], older[1])]

    @invariant()
    def only_the_branch_that_counts_opens(self) -> None:
        for image in self.world.seen:
            assert not self.world.opens(image) or self.world.belongs(image)

    @invariant()
    def what_is_committed_opens(self) -> None:
        assert all(self.world.opens(image) for image in self.world.seen if image.path == self.world.head)

    @invariant()
    def nothing_is_announced_twice(self) -> None:
        record = self.world.record
        assert record.state is VolumeState.ACTIVE
        numbers = [item.generation for item in record.candidates]
        assert numbers == sorted(set(numbers))
        assert record.announced >= max([record.generation, *numbers])


def test_the_abandoned_branch_with_the_same_number_is_refused() -> None:
    """A backup at generation 3; opened; restored; opened again: two images say generation 4, one of them is the volume."""
    world = new_world()
    for _ in range(2):
        list(guest(world))
    record, head, at_backup = world.record, world.head, world.disk
    list(guest(world))
    abandoned = world.disk
    world.record, world.epoch, world.head, world.disk = register.restored(record, 60), 2, head, at_backup
    list(guest(world))
    assert (abandoned.newest.generation, world.disk.newest.generation) == (4, 4)
    assert (world.opens(abandoned), world.opens(world.disk)) == (False, True)
    accepted = replace(world, record=register.accept(world.record, abandoned.newest.state, reason="r", now_unix=0))
    assert (accepted.opens(abandoned), accepted.opens(world.disk)) == (True, False)


TestForks = Forks.TestCase
TestForks.settings = settings(max_examples=150, stateful_step_count=40)
