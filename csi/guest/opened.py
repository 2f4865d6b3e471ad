"""What an open returns, and how it tells a person where it is."""

from collections.abc import Callable
from dataclasses import dataclass

from csi.core.sealed import Freshness, Profile

Progress = Callable[[str], None]
"""Is told each step in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A volume that is mounted now."""

    volume_id: str
    device: str
    mapping: str
    mount: str
    profile: Profile
    freshness: Freshness
    generation: int
    formatted_now: bool
    mounted_now: bool
    """False when an earlier call had mounted it."""
    read_only: bool
