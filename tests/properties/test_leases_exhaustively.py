"""Every history of a volume's lease up to a depth: two guests that die or fall silent, requests and answers that travel for
any time or arrive twice, a broker that restarts or is restored from a backup, and a person. The rules are the real ones.

Time goes in steps; a lease lasts `LENGTH` of them. A guest believes in its lease for so long from when it asked, the broker
counts from when it answered.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest

from csi.broker import leases, rules
from csi.broker.liveness import Liveness
from csi.core.errors import Busy, LeaseLost
from csi.core.sealed import Profile
from csi.kbs.register import Lease, VolumeRecord

LENGTH, DEPTH, MOST_SECRETS, MOST_TRAVELLING = 5, 6, 3, 2
"""Five is the least length there is; the clock moves three at a time."""
STEP = 3
GUESTS = range(2)
ALLOCATED = rules.allocate("v", Profile.XTS)


@dataclass(frozen=True)
class Guest:
    """What a guest knows: its secret, and until when it believes in it."""

    secret: str | None = None
    until: int = 0

    def believes(self, now: int) -> bool:
        return self.secret is not None and now < self.until


@dataclass(frozen=True)
class Message:
    """A request on its way, or (`answered`) its good answer on the way back."""

    guest: int
    verb: str
    secret: str
    asked: int
    instead: str | None = None
    answered: bool = False


@dataclass(frozen=True)
class World:
    record: VolumeRecord = ALLOCATED
    ends: tuple[tuple[str, float], ...] = ()
    started: int = 0
    now: int = 0
    guests: tuple[Guest | None, ...] = (Guest(), Guest())
    """None is a dead one."""
    travelling: tuple[Message, ...] = ()
    secrets: int = 0
    backup: VolumeRecord | None = None
    persons: int = 0
    restarts: int = 0

    def with_guest(self, number: int, guest: Guest | None) -> "World":
        return replace(self, guests=tuple(guest if n == number else old for n, old in enumerate(self.guests)))

    def liveness(self) -> Liveness:
        made = Liveness(clock=lambda: self.started)
        made._clock = lambda: self.now
        made._ends = dict(self.ends)
        return made

    def sent(self, message: Message) -> "World":
        return replace(self, travelling=(*self.travelling, message)[-MOST_TRAVELLING:])


def following(world: World) -> Iterator[tuple[str, World]]:
    yield "time goes by", replace(world, now=world.now + STEP)
    for number in GUESTS:
        guest = world.guests[number]
        if guest is not None:
            yield from of_a_guest(world, number, guest)
    for place, message in enumerate(world.travelling):
        rest = replace(world, travelling=world.travelling[:place] + world.travelling[place + 1 :])
        if message.answered:
            yield "an answer arrives", arrived(rest, message)
        else:
            after = handled(world, message)
            yield "a request arrives and will again", after
            yield "a request arrives", replace(after, travelling=tuple(m for m in after.travelling if m != message))
    yield from of_the_broker(world)


def of_a_guest(world: World, number: int, guest: Guest) -> Iterator[tuple[str, World]]:
    yield "a guest dies", world.with_guest(number, None)
    if world.secrets < MOST_SECRETS:
        secret = f"{world.secrets + 1:064x}"
        # It has ended whoever used its last lease before it gives that up for another.
        asking = world.with_guest(number, Guest(secret=secret))
        message = Message(number, "lease", secret, world.now, instead=guest.secret)
        yield "a guest asks for the lease", replace(asking, secrets=world.secrets + 1).sent(message)
    if guest.secret is not None:
        yield "a guest renews", world.sent(Message(number, "renew", guest.secret, world.now))
        # It says so only after it has stopped.
        stopped = world.with_guest(number, Guest())
        yield "a guest closes", stopped.sent(Message(number, "release", guest.secret, world.now))


def handled(world: World, message: Message) -> World:
    liveness = world.liveness()
    try:
        record = answer(world.record, message, liveness)
    except (Busy, LeaseLost):
        return world
    after = replace(world, record=record, ends=tuple(sorted(liveness._ends.items())))
    return after if message.verb == "release" else after.sent(replace(message, answered=True))


def answer(record: VolumeRecord, message: Message, liveness: Liveness) -> VolumeRecord:
    """As `csi.broker.volumes` does it, in one transaction."""
    match message.verb:
        case "lease":
            wanted = Lease(digest=message.secret, holder=f"guest {message.guest}", seconds=LENGTH)
            taken = leases.take(record, wanted, instead=message.instead, remaining=partial(liveness.remaining, "pvc"))
            liveness.extend("pvc", taken.lease or wanted)
            return taken
        case "renew":
            liveness.extend("pvc", leases.hold(record, message.secret))
            return record
        case _:
            return leases.release(record, message.secret)


def arrived(world: World, message: Message) -> World:
    guest = world.guests[message.guest]
    if guest is None or guest.secret != message.secret:
        return world
    until = max(guest.until, message.asked + LENGTH)
    return world.with_guest(message.guest, replace(guest, until=until))


def of_the_broker(world: World) -> Iterator[tuple[str, World]]:
    if world.restarts < 2:
        anew = replace(world, ends=(), started=world.now, restarts=world.restarts + 1)
        yield "the broker starts anew", anew
        if world.backup is not None:
            yield "a backup is restored", replace(anew, record=rules.restored(world.backup, LENGTH))
    if world.backup is None:
        yield "a backup is made", replace(world, backup=world.record)
    if world.persons == 0:
        yield "a person hands the volume over", replace(world, record=rules.hand_over(world.record), persons=1)
        if all(guest is None or guest.secret is None for guest in world.guests):
            yield "a person vouches for a dead guest", replace(world, record=leases.end(world.record), persons=1)


def check(world: World) -> None:
    believing = [guest for guest in world.guests if guest is not None and guest.believes(world.now)]
    assert len(believing) <= 1, "at most one writer believes in a lease"
    later = replace(world, now=world.now + LENGTH + 1)
    wanted = Lease(digest="f" * 64, holder="a new guest", seconds=LENGTH)
    leases.take(
        later.record, wanted, instead=None, remaining=partial(later.liveness().remaining, "pvc")
    )  # a volume always has a way out


def explored(start: World, depth: int) -> tuple[int, int, frozenset[str]]:
    known, edge, steps, names = {start}, [start], 0, set()
    for _ in range(depth):
        following_edge = []
        for world in edge:
            for name, after in following(world):
                steps += 1
                names.add(name)
                if (same := shown_apart_from_its_date(after)) not in known:
                    known.add(same)
                    check(same)
                    following_edge.append(same)
        edge = following_edge
    return len(known), steps, frozenset(names)


def shown_apart_from_its_date(world: World) -> World:
    """Worlds that differ in the time of day, in times long past, or in numbers that no rule of a lease reads, are one."""
    long_ago = -LENGTH - 1

    def since(moment: float) -> int:
        return max(long_ago, int(moment) - world.now)

    return replace(
        world,
        now=0,
        started=since(world.started),
        record=replace(world.record, revision=1),
        backup=None if world.backup is None else replace(world.backup, revision=1),
        ends=tuple((digest, since(ends)) for digest, ends in world.ends),
        guests=tuple(None if guest is None else replace(guest, until=since(guest.until)) for guest in world.guests),
        travelling=tuple(replace(message, asked=since(message.asked)) for message in world.travelling),
    )


def with_a_holder() -> World:
    """The first guest has the lease and believes in it; a backup was made before, and the request may come again."""
    world = replace(World(), backup=ALLOCATED)
    for name in ("a guest asks for the lease", "a request arrives and will again", "an answer arrives"):
        world = dict(reversed(list(following(world))))[name]
    return world


@pytest.mark.parametrize("start", [World(), with_a_holder()], ids=["nobody has it", "a guest has it"])
def test_at_most_one_writer_believes_in_a_lease_in_every_history(start: World) -> None:
    worlds, steps, names = explored(start, DEPTH)
    print(f"{worlds} worlds, {steps} steps, depth {DEPTH}")
    assert worlds > 10_000
    assert names >= {"a backup is restored", "a person hands the volume over", "a request arrives and will again"}


@pytest.mark.parametrize("held", ["live", "revoked", "unknown"])
def test_what_keeps_others_out_says_how_long_and_what_a_person_can_do(held: str) -> None:
    wanted = Lease(digest="1" * 64, holder="first", seconds=60)
    record = leases.take(ALLOCATED, wanted, instead=None, remaining=lambda _: 0.0)
    record = {"live": record, "revoked": rules.hand_over(record), "unknown": rules.restored(record, 60)}[held]
    with pytest.raises(Busy, match=r" 42 s.*sealed-local broker volume end-lease v$"):
        leases.take(record, replace(wanted, digest="2" * 64), instead=None, remaining=lambda _: 42.0)
