"""What a measurement is, and how it is shown: ours beside the bare commands of the same run, a target, and the peers."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Seconds that other drivers took for the same call, and the bare commands in their run."""

    topolvm: float
    metal_stack: float
    inactive: float
    active: float


# TopoLVM 0.41 and metal-stack's csi-driver-lvm 0.8, built from their sources and measured beside this driver in one run of
# this lab: 50 volumes in the group, rounds alternating, medians. No package registry has them, so their numbers are
# constants here and only ratios compare. Both leave a volume active between pods and skip the check of its filesystem,
# neither wipes.
PEERS = {
    "create": Peer(topolvm=0.87, metal_stack=0.82, inactive=0.28, active=0.42),
    "create again": Peer(topolvm=0.38, metal_stack=0.24, inactive=0.23, active=0.28),
    "first stage": Peer(topolvm=0.98, metal_stack=0.44, inactive=0.65, active=0.25),
    "later stage": Peer(topolvm=0.63, metal_stack=0.09, inactive=0.59, active=0.17),
    "unstage": Peer(topolvm=0.07, metal_stack=0.05, inactive=0.38, active=0.07),
    "delete unused": Peer(topolvm=0.47, metal_stack=0.64, inactive=0.23, active=0.28),
    "delete used": Peer(topolvm=0.48, metal_stack=0.63, inactive=0.22, active=0.29),
    "delete unwiped": Peer(topolvm=0.48, metal_stack=0.63, inactive=0.22, active=0.29),
    "20 creates": Peer(topolvm=17.8, metal_stack=17.5, inactive=5.5, active=11.0),
}
PEER_LVM_PROCESSES = {"TopoLVM": 9, "metal-stack": 6}
PEER_MEMORY_MIB = {"TopoLVM": 65, "metal-stack": 15}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measurement: ours beside its baseline, or a plain value with its target."""

    what: str
    ours: float
    baseline: float | None
    unit: str
    target: float | None

    @property
    def value(self) -> float:
        """The ratio, or the plain value where there is no baseline."""
        return self.ours if self.baseline is None else self.ours / self.baseline

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"value": self.value}

    def __str__(self) -> str:
        unit = "x" if self.baseline is not None else f" {self.unit}"
        target = "" if self.target is None else f"target {self.target:g}{unit}{_verdict(self.value, self.target)}"
        if self.baseline is None:
            return f"{self.what:<64} {self.ours:8.2f} {self.unit:<3} {'':>16} {target}"
        both = f"{self.ours:8.2f} {self.unit:<3} / {self.baseline:8.2f} {self.unit}"
        return f"{self.what:<64} {both}  = {self.value:5.2f}x  {target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One call of a volume's life beside the bare commands: with the volume left inactive between pods, and left active.

    `active` says which of the two this driver did; the target counts against that one.
    """

    what: str
    ours: float
    bare_inactive: float
    bare_active: float
    active: bool
    target: float | None
    peer: Peer

    @property
    def value(self) -> float:
        """The ratio to the baseline that does the same."""
        return self.ours / (self.bare_active if self.active else self.bare_inactive)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"value": self.value}

    def __str__(self) -> str:
        same = self.peer.active if self.active else self.peer.inactive
        peers = f"TopoLVM {self.peer.topolvm / same:.2f}x, metal-stack {self.peer.metal_stack / same:.2f}x"
        inactive = f"{self.bare_inactive:5.2f} s ={self.ours / self.bare_inactive:5.2f}x{' ' if self.active else '*'}"
        active = f"{self.bare_active:5.2f} s ={self.ours / self.bare_active:5.2f}x{'*' if self.active else ' '}"
        target = "" if self.target is None else f"target {self.target:g}x{_verdict(self.value, self.target)}"
        return f"{self.what:<34} {self.ours:5.2f} s / {inactive} / {active}  {target:<20} {peers}"


def _verdict(value: float, target: float) -> str:
    return "  met" if value <= target else "  MISSED"
