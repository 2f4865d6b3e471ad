"""Every history of one volume up to a depth: two guests that may die anywhere, calls that arrive late or again, a host that
shows any disk it ever saw, a backup that is restored, and an operator. No history is left out, none is drawn at random.

The rules and the guest's decision are the real ones; the invariants have the names that `docs/sealed-format.md` gives them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from csi.broker import rules as register
from csi.core.errors import SealedLocalError
from csi.core.sealed import PAYLOAD_OFFSET, Profile
from csi.guest import decide as plan
from csi.guest.decide import DiskView, Format, Open
from csi.guest.seal import state_record
from csi.guest.seal.state_record import Slot, SlotState, StateRecord
from csi.kbs.register import Announcement, VolumeRecord, VolumeState

PAYLOAD, HEADER, MEASUREMENT = 4096, b"h" * 32, "m"
BLANK = (SlotState.ABSENT, SlotState.ABSENT)
DEPTH, MOST_NONCES, MOST_MESSAGES = 9, 4, 3
GUESTS = range(2)


@dataclass(frozen=True)
class Disk:
    """What lies on a disk: its two slots, and the announcements under which it was written, the oldest first."""

    slots: tuple[Slot, Slot] = BLANK
    path: tuple[Announcement, ...] = ()

    def written(self, record: StateRecord) -> "Disk":
        slots = list(self.slots)
        slots[record.sequence % 2] = record
        return Disk(slots=(slots[0], slots[1]), path=(*self.path, record.announcement))

    @property
    def newest(self) -> StateRecord | None:
        written = [slot for slot in self.slots if isinstance(slot, StateRecord)]
        return max(written, key=lambda slot: slot.sequence, default=None)

    def view(self) -> DiskView:
        return DiskView(
            device_bytes=PAYLOAD_OFFSET + PAYLOAD,
            slots=self.slots,
            zero_but_slots=not self.path,
            header=lambda _: HEADER,
            copies_equal=lambda: True,
        )


@dataclass(frozen=True)
class Message:
    """A call as it travels: whoever carries it can deliver it late, again, or never."""

    verb: str
    revision: int
    nonce: str
    generation: int = 1


@dataclass(frozen=True)
class Guest:
    """One guest's progress. `wants` is its decision, `told` what the register answered to its announcement."""

    record: VolumeRecord
    disk: Disk
    wants: Format | Open
    told: Announcement | None = None
    revision: int = 0
    wrote: bool = False


@dataclass(frozen=True)
class World:
    """All that a history can lead to; two that are equal have the same future."""

    record: VolumeRecord
    disk: Disk = Disk()
    seen: frozenset[Disk] = frozenset({Disk()})
    guests: tuple[Guest | None, ...] = (None, None)
    messages: tuple[Message, ...] = ()
    announced: frozenset[Announcement] = frozenset()
    nonces: int = 0
    epoch: int = 1
    backup: tuple[VolumeRecord, tuple[Announcement, ...], bool] | None = None
    restores: int = 0
    accepts: int = 0
    head: tuple[Announcement, ...] = ()
    """The path that the register committed or a person accepted."""
    begun: frozenset[Announcement] = frozenset()
    active: bool = False
    """Whether this life of the register ever committed a format."""

    def opens(self, disk: Disk) -> bool:
        try:
            return isinstance(plan.decide(self.record, disk.view(), may_format=True), Open)
        except SealedLocalError:
            return False

    def belongs(self, disk: Disk) -> bool:
        return disk.path[: len(self.head)] == self.head and set(disk.path[len(self.head) :]) <= self.begun

    def with_guest(self, number: int, guest: Guest | None) -> "World":
        return replace(self, guests=tuple(guest if n == number else old for n, old in enumerate(self.guests)))

    def with_disk(self, disk: Disk) -> "World":
        return replace(self, disk=disk, seen=self.seen | {disk})


def following(world: World) -> Iterator[tuple[str, World]]:
    """Everything that can happen next, with its name."""
    for number in GUESTS:
        yield from of_a_guest(world, number)
    for message in world.messages:
        yield f"{message.verb} is delivered by somebody", delivered(world, message)
    for disk in world.seen - {world.disk}:
        yield "the host shows another disk", replace(world, disk=disk)
    yield from of_the_operator(world)


def of_a_guest(world: World, number: int) -> Iterator[tuple[str, World]]:
    guest = world.guests[number]
    if guest is None:
        try:
            wants = plan.decide(world.record, world.disk.view(), may_format=True)
        except SealedLocalError:
            return
        assert not (isinstance(wants, Format) and world.active), "no committed volume is formatted"
        yield "a guest reads", world.with_guest(number, Guest(record=world.record, disk=world.disk, wants=wants))
        return
    yield "a guest dies", world.with_guest(number, None)
    if guest.told is None:
        yield from announcing(world, number, guest)
    elif not guest.wrote:
        yield "a guest writes", wrote(world, number, guest)
    else:
        yield from committing(world, number, guest)


def announcing(world: World, number: int, guest: Guest) -> Iterator[tuple[str, World]]:
    if world.nonces >= MOST_NONCES:
        return
    nonce = f"{world.nonces + 1:064x}"
    formats = isinstance(guest.wants, Format)
    generation = 1 if formats else guest.record.announced + 1
    message = Message("begin-format" if formats else "begin-open", guest.record.revision, nonce, generation)
    sent = replace(world, nonces=world.nonces + 1, messages=(*world.messages, message)[-MOST_MESSAGES:])
    yield "an announcement is lost", sent.with_guest(number, None)
    got = delivered(sent, message)
    if got.record is not sent.record:
        told = Announcement(generation=generation, nonce=nonce, epoch=f"{world.epoch:032x}")
        answered = replace(guest, told=told, revision=got.record.revision)
        yield "an announcement is answered", got.with_guest(number, answered)


def wrote(world: World, number: int, guest: Guest) -> World:
    assert guest.told is not None
    if isinstance(guest.wants, Format):
        begun = state_record.intent(Profile.XTS, 1, PAYLOAD)
        record = state_record.opened(begun, HEADER, bytes(32), guest.told)
        disk = Disk().written(record)
    else:
        disk = guest.disk.written(state_record.following(guest.wants.found, guest.told))
    return world.with_disk(disk).with_guest(number, replace(guest, disk=disk, wrote=True))


def committing(world: World, number: int, guest: Guest) -> Iterator[tuple[str, World]]:
    assert guest.told is not None
    verb = "commit-format" if isinstance(guest.wants, Format) else "commit-open"
    message = Message(verb, guest.revision, guest.told.nonce, guest.told.generation)
    sent = replace(world, messages=(*world.messages, message)[-MOST_MESSAGES:])
    yield "a commit is lost", sent.with_guest(number, None)
    got = delivered(sent, message)
    if got.record is not sent.record:
        # What it wrote is the volume now.
        yield "a commit is answered", got.with_guest(number, None)


def delivered(world: World, message: Message) -> World:
    """The register's answer to a call, whoever delivers it. A refused one changes nothing."""
    try:
        record = answer(world, message)
    except SealedLocalError:
        return world
    if record is world.record:
        return world
    after = replace(world, record=record)
    if message.verb.startswith("begin"):
        epoch = f"{world.epoch:032x}"
        made = Announcement(generation=message.generation, nonce=message.nonce, epoch=epoch)
        assert made not in world.announced, "nothing is announced twice"
        assert not (message.verb == "begin-format" and world.active), "no committed volume is formatted"
        return replace(after, announced=world.announced | {made}, begun=world.begun | {made})
    assert record.head is not None
    path = next(disk.path for disk in world.seen if disk.path[-1:] == (record.head,))
    return replace(after, head=path, begun=frozenset(), active=True)


def answer(world: World, message: Message) -> VolumeRecord:
    revision, nonce, generation = message.revision, message.nonce, message.generation
    epoch = f"{world.epoch:032x}"
    match message.verb:
        case "begin-format":
            return register.begin_format(
                world.record, revision=revision, nonce=nonce, payload_bytes=PAYLOAD, measurement=MEASUREMENT,
                epoch=epoch, now_unix=0, lifetime_seconds=1,
            )  # fmt: skip
        case "commit-format":
            return register.commit_format(
                world.record, revision=revision, nonce=nonce, measurement=MEASUREMENT, header_sha256=HEADER.hex(),
                payload_bytes=PAYLOAD,
            )  # fmt: skip
        case "begin-open":
            return register.begin_open(world.record, revision=revision, nonce=nonce, generation=generation, epoch=epoch)
        case _:
            return register.commit_open(world.record, revision=revision, nonce=nonce, generation=generation)


def of_the_operator(world: World) -> Iterator[tuple[str, World]]:
    if world.backup is None:
        yield "a backup is made", replace(world, backup=(world.record, world.head, world.active))
    elif world.restores == 0:
        record, head, active = world.backup
        # The broker starts anew: sessions and tickets are gone, so no earlier call is answered, late or not.
        yield "a backup is restored", replace(
            world, record=register.restored(record, 60), head=head, begun=frozenset(), active=active, epoch=world.epoch + 1,
            restores=1, guests=(None, None), messages=(),
        )  # fmt: skip
    if world.record.state is VolumeState.FORMATTING:
        yield "a formatting is reset", replace(world, record=register.reset(world.record))
    if world.accepts == 0 and world.disk.newest is not None:
        yield "a disk is accepted", accepted(world)


def accepted(world: World) -> World:
    newest = world.disk.newest
    assert newest is not None
    try:
        record = register.accept(world.record, newest.state, reason="r", now_unix=0)
    except SealedLocalError:
        return world
    return replace(world, record=record, head=world.disk.path, begun=frozenset(), accepts=1, active=True)


def check(world: World) -> None:
    """The invariants."""
    for disk in world.seen:
        assert not world.opens(disk) or world.belongs(disk), "only the branch that counts opens"
        assert not (world.active and disk.path == world.head) or world.opens(disk), "what is committed opens"
    assert has_a_way_out(world), "a volume always has a way out"


def has_a_way_out(world: World) -> bool:
    """Whatever disk the host shows that was ever formatted: it opens, or does after a person's word, and then it alone."""
    newest = world.disk.newest
    if newest is None:
        return True
    if world.opens(world.disk):
        return True
    record = world.record if world.record.state is not VolumeState.FORMATTING else register.reset(world.record)
    after = replace(world, record=register.accept(record, newest.state, reason="r", now_unix=0))
    return after.opens(world.disk) and not any(
        after.opens(disk) for disk in world.seen if disk.newest is not None and disk.newest.nonce != newest.nonce
    )


def explored(start: World, depth: int) -> tuple[int, int, frozenset[str]]:
    """How many worlds and steps there are up to the depth, and what happened in them."""
    known, edge, steps, names = {start}, [start], 0, set()
    for _ in range(depth):
        following_edge = []
        for world in edge:
            for name, after in following(world):
                steps += 1
                names.add(name)
                if after not in known:
                    known.add(after)
                    check(after)
                    following_edge.append(after)
        edge = following_edge
    return len(known), steps, frozenset(names)


def formatted() -> World:
    """A volume that was formatted and opened by nobody since."""
    world = World(record=register.allocate("v", Profile.XTS))
    for name in ("a guest reads", "an announcement is answered", "a guest writes", "a commit is answered"):
        world = dict(following(world))[name]
    return replace(world, messages=(), nonces=1)


@pytest.mark.parametrize(
    ("start", "depth"),
    [(World(record=register.allocate("v", Profile.XTS)), DEPTH), (formatted(), DEPTH)],
    ids=["never formatted", "formatted"],
)
def test_every_history_keeps_the_promises(start: World, depth: int) -> None:
    worlds, steps, names = explored(start, depth)
    print(f"{worlds} worlds, {steps} steps, depth {depth}")
    assert worlds > 10_000
    assert names >= {"a guest dies", "a backup is restored", "a disk is accepted", "the host shows another disk"}
