"""Who may be given what: the broker's policy that the claims of a guest are held against. Denies by default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from csi.broker.claims import SnpProduct, SnpTcb, TcbStatus

ANY = "any"
"""The word that switches one comparison of a workload off. It has to be written; leaving the list out denies."""

Registers: TypeAlias = Mapping[str, tuple[str, ...]]
"""By name of a register, the values that it may have. A register that is not named is not compared."""


class Allocate(StrEnum):
    """Who brings a volume into the register."""

    FIRST_USE = "first-use"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxImage:
    """A reference set: what the registers of a TD that runs this image have to hold.

    `unmeasured`: what the policy says, in these words, to leave to whoever starts the guest.
    """

    name: str
    registers: Registers
    unmeasured: str | None = None

    @property
    def tee(self) -> str:
        """Its name in the KBS protocol."""
        return "tdx"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpImage:
    """A reference set: what a SEV-SNP report of a guest that runs this image has to hold."""

    name: str
    registers: Registers
    vmpl: tuple[int, ...] = (0,)
    minimum_guest_svn: int = 0
    smt: bool = True
    single_socket: bool = False
    migration_agent: bool = False

    @property
    def tee(self) -> str:
        """Its name in the KBS protocol."""
        return "snp"


Image: TypeAlias = TdxImage | SnpImage


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxFloor:
    """Which TDX platforms are good enough."""

    tcb_status: tuple[TcbStatus, ...] = (TcbStatus.UP_TO_DATE,)
    denied_advisories: tuple[str, ...] = ()
    minimum_tcb_evaluation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpFloor:
    """Which SEV-SNP platforms are good enough. A product without a floor is refused."""

    minimum_tcb: Mapping[SnpProduct, SnpTcb] = field(default_factory=dict)
    committed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Guests that are allowed something, and what. A guest belongs to it when every list has its value."""

    name: str
    tee: tuple[str, ...]
    init_data: tuple[str, ...]
    images: tuple[str, ...] = ()
    launch_digests: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    debug: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicy:
    """The whole policy of a broker. An empty one lets nobody have anything."""

    allow_sample: bool = False
    tdx: TdxFloor = TdxFloor()
    snp: SnpFloor = SnpFloor()
    allocate: Allocate = Allocate.FIRST_USE
    format_deadline_seconds: int = 3600
    lease_seconds: int = 60
    images: tuple[Image, ...] = ()
    workloads: tuple[Workload, ...] = ()
