"""What has been so for a while: a claim that is just being made, or a node that is just being replaced, looks lost for a
moment. Pure: the caller says what time it is.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Fact = TypeVar("Fact", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling(Generic[Fact]):
    """Facts with the moments, in seconds of one clock, since which they have been seen without a break."""

    since: Mapping[Fact, float] = field(default_factory=dict)

    def seen(self, facts: Iterable[Fact], now: float) -> "Settling[Fact]":
        """The same after another look. A fact that isn't there any more begins anew when it comes back."""
        return Settling(since={fact: self.since.get(fact, now) for fact in facts})

    def for_seconds(self, seconds: float, now: float) -> tuple[Fact, ...]:
        """Those that have been so for that long."""
        return tuple(fact for fact, since in self.since.items() if now - since >= seconds)
