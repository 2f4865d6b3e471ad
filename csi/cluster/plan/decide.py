"""One round: (what is seen now, what was seen before) to actions. Pure; the caller says what time it is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from csi.cluster.objects import Seen
from csi.cluster.plan import gone_nodes, node_storage, orphans, runtime_class
from csi.cluster.plan.actions import Action
from csi.cluster.plan.settled import Settling


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the operator has settled."""

    driver: str
    topology_key: str
    kata_handlers: re.Pattern[str]
    init_config: str
    settle_seconds: float
    release_after_seconds: float
    """0: claims of nodes that are gone are never released."""
    heartbeat_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When a round is: seconds of a clock that only this process knows, and the time of day as RFC 3339."""

    seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a round leaves to the next. A helper that begins anew begins all waits anew, which is the safe side."""

    unmatched: Settling[orphans.Fact] = field(default_factory=Settling)
    gone: Settling[str] = field(default_factory=Settling)
    heartbeat: float | None = None


def actions(seen: Seen, before: Memory, rules: Rules, now: Moment) -> tuple[tuple[Action, ...], Memory]:
    """What to do now, and what to remember."""
    due = before.heartbeat is None or now.seconds - before.heartbeat >= rules.heartbeat_seconds
    after = Memory(
        unmatched=before.unmatched.seen(orphans.facts(seen, rules.driver, rules.topology_key), now.seconds),
        gone=before.gone.seen(gone_nodes.gone(seen, rules.driver, rules.topology_key), now.seconds),
        heartbeat=now.seconds if due else before.heartbeat,
    )
    return tuple(_actions(seen, after, rules, now, heartbeat_is_due=due)), after


def _actions(seen: Seen, memory: Memory, rules: Rules, now: Moment, *, heartbeat_is_due: bool) -> Iterator[Action]:
    yield from runtime_class.warnings(seen, rules.driver, rules.kata_handlers)
    yield from node_storage.actions(seen, rules.init_config, now.text, heartbeat_is_due=heartbeat_is_due)
    for fact in memory.unmatched.for_seconds(rules.settle_seconds, now.seconds):
        yield from orphans.told(fact, seen)
    if rules.release_after_seconds > 0:
        lost = frozenset(memory.gone.for_seconds(rules.release_after_seconds, now.seconds))
        yield from gone_nodes.releases(seen, rules.driver, rules.topology_key, lost)
