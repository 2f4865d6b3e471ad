"""Who may be given what: the claims of a guest, and the broker's policy that they are held against. Denies by default."""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from csi.core.framing import framed

ANY = "any"
"""The word that switches one comparison of a workload off. It has to be written; leaving the list out denies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What verified evidence says about a guest. `init_data` is `<algorithm>:<hex>`, None when the guest has none."""

    tee: str
    launch_digest: str
    init_data: str | None
    svn: str
    debug: bool = False

    @property
    def measurement(self) -> str:
        """One digest for what runs in the guest; the register compares it."""
        parts = ("sealed-local/measurement/v1", self.tee, self.launch_digest, self.init_data or "")
        return hashlib.sha256(framed(*(part.encode() for part in parts))).hexdigest()


class Allocate(StrEnum):
    """Who brings a volume into the register."""

    FIRST_USE = "first-use"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Guests that are allowed something, and what. A guest belongs to it when all three lists have its value."""

    name: str
    tee: tuple[str, ...]
    launch_digests: tuple[str, ...]
    init_data: tuple[str, ...]
    volumes: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    debug: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicy:
    """The whole policy of a broker. An empty one lets nobody have anything."""

    allow_sample: bool = False
    allocate: Allocate = Allocate.FIRST_USE
    format_deadline_seconds: int = 3600
    workloads: tuple[Workload, ...] = field(default=())
