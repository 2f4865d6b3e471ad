"""What verified evidence says about a guest: one type for each TEE, a closed union. Registers are lower-case hex.

Nothing here decides whether the claims are good enough; that is `csi.broker.appraise`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypeAlias, assert_never

import msgspec

from csi.core.errors import InvalidInput
from csi.core.framing import framed


class TcbStatus(StrEnum):
    """What Intel says of a platform's firmware, in the spelling of its TCB info. Revoked platforms never get this far."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"


class SnpProduct(StrEnum):
    """A line of AMD processors: it has a root key of its own, and its own layout of TCB versions."""

    MILAN = "milan"
    GENOA = "genoa"
    TURIN = "turin"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleClaims:
    """The development TEE: nothing of this is proven. `init_data` is `<algorithm>:<hex>`, None when there is none."""

    launch_digest: str
    init_data: str | None
    svn: str
    debug: bool = False

    @property
    def tee(self) -> str:
        """Its name in the KBS protocol."""
        return "sample"

    @property
    def measurement(self) -> str:
        """See `measurement_of`."""
        return measurement_of(self.tee, self.launch_digest, self.init_data or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class TdAttributes:
    """The bits of TD attributes that matter. `debug` is any bit by which the host may look into the TD (TUD group)."""

    debug: bool
    migratable: bool
    sept_ve_disable: bool
    raw: str

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """From the 8 bytes of the report, which are little-endian."""
        bits = int.from_bytes(raw, "little")
        return cls(
            debug=bits & 0xFF != 0,
            migratable=bool(bits >> 29 & 1),
            sept_ve_disable=bool(bits >> 28 & 1),
            raw=raw.hex(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxClaims:
    """A TD report whose quote verified against Intel's collateral, or that of somebody's tests (`test_authority`).

    `init_data` is the digest of the text that the guest showed and that MRCONFIGID carries; None when it showed none.
    """

    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str
    rtmr3: str
    mrconfigid: str
    mrowner: str
    mrownerconfig: str
    mrseam: str
    mrsignerseam: str
    xfam: str
    attributes: TdAttributes
    report_data: str
    tee_tcb_svn: str
    tcb_status: TcbStatus
    current_tcb_status: TcbStatus | None
    """Of the TCB that the TD runs on now, where the quote tells it. `tcb_status` is of the one that it was launched on."""
    advisories: tuple[str, ...]
    tcb_evaluation: int
    fmspc: str
    init_data: str | None
    test_authority: bool = False

    @property
    def tee(self) -> str:
        """Its name in the KBS protocol."""
        return "tdx"

    @property
    def debug(self) -> bool:
        """Whether the host may look into the TD."""
        return self.attributes.debug

    @property
    def configuration(self) -> str:
        """The register that init-data is bound to."""
        return self.mrconfigid

    @property
    def measurement(self) -> str:
        """See `measurement_of`. RTMR3 is left out: programs in the guest extend it while they run."""
        return measurement_of(
            self.tee, self.mrtd, self.rtmr0, self.rtmr1, self.rtmr2, self.mrconfigid, self.mrowner, self.mrownerconfig
        )

    @property
    def registers(self) -> Mapping[str, str]:
        """What a reference set may name."""
        return {name: getattr(self, name) for name in TDX_REGISTERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpTcb:
    """Security version numbers of a platform's parts. `fmc` is there from Turin on; before, it is 0."""

    fmc: int = 0
    bootloader: int
    tee: int
    snp: int
    microcode: int

    def below(self, floor: "SnpTcb") -> tuple[str, ...]:
        """Parts that are older than in `floor`. Each part counts for itself: a newer one makes up for no older one."""
        pairs = ((part, getattr(self, part), getattr(floor, part)) for part in SNP_TCB_PARTS)
        return tuple(f"{part} {found}, not {wanted}" for part, found, wanted in pairs if found < wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPolicy:
    """The guest policy that the firmware enforces: what the host may do to the guest."""

    debug: bool
    migration_agent: bool
    smt: bool
    single_socket: bool
    raw: str

    @classmethod
    def parse(cls, bits: int) -> Self:
        """From the 64 bits of the report."""
        return cls(
            smt=bool(bits >> 16 & 1),
            migration_agent=bool(bits >> 18 & 1),
            debug=bool(bits >> 19 & 1),
            single_socket=bool(bits >> 20 & 1),
            raw=f"{bits:016x}",
        )


class SnpKey(StrEnum):
    """Which key signed a report: the chip's own, or one that AMD loaded for a cloud provider."""

    VCEK = "vcek"
    VLEK = "vlek"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpClaims:
    """A SEV-SNP report that verified up to AMD's root, or to an authority of somebody's tests (`test_authority`).

    `init_data` is the digest of the text that the guest showed and that HOSTDATA carries; None when it showed none.
    """

    launch_measurement: str
    host_data: str
    family_id: str
    image_id: str
    id_key_digest: str
    author_key_digest: str
    policy: SnpPolicy
    vmpl: int
    guest_svn: int
    chip_id: str
    product: SnpProduct
    signing_key: SnpKey
    current_tcb: SnpTcb
    reported_tcb: SnpTcb
    committed_tcb: SnpTcb
    launch_tcb: SnpTcb
    report_data: str
    init_data: str | None
    test_authority: bool = False

    @property
    def tee(self) -> str:
        """Its name in the KBS protocol."""
        return "snp"

    @property
    def debug(self) -> bool:
        """Whether the host may look into the guest."""
        return self.policy.debug

    @property
    def configuration(self) -> str:
        """The register that init-data is bound to."""
        return self.host_data

    @property
    def measurement(self) -> str:
        """See `measurement_of`."""
        return measurement_of(self.tee, self.launch_measurement, self.host_data, str(self.vmpl))

    @property
    def registers(self) -> Mapping[str, str]:
        """What a reference set may name."""
        return {
            "measurement": self.launch_measurement,
            "host_data": self.host_data,
            "family_id": self.family_id,
            "image_id": self.image_id,
            "id_key_digest": self.id_key_digest,
            "author_key_digest": self.author_key_digest,
        }


TDX_REGISTERS: Mapping[str, int] = {
    "mrtd": 48, "rtmr0": 48, "rtmr1": 48, "rtmr2": 48, "rtmr3": 48, "mrconfigid": 48, "mrowner": 48,
    "mrownerconfig": 48, "mrseam": 48, "mrsignerseam": 48, "xfam": 8,
}  # fmt: skip
"""Registers of a TD by name, with their bytes."""
SNP_REGISTERS: Mapping[str, int] = {
    "measurement": 48, "host_data": 32, "family_id": 16, "image_id": 16, "id_key_digest": 48, "author_key_digest": 48,
}  # fmt: skip
"""The same for SEV-SNP."""
SNP_TCB_PARTS = ("fmc", "bootloader", "tee", "snp", "microcode")

HardwareClaims: TypeAlias = TdxClaims | SnpClaims
Claims: TypeAlias = SampleClaims | HardwareClaims


def measurement_of(*parts: str) -> str:
    """One digest for what runs in the guest; the register compares it. Every field is written with its length."""
    return hashlib.sha256(framed(*(part.encode() for part in ("sealed-local/measurement/v1", *parts)))).hexdigest()


class StoredClaims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Claims as JSON, in a token and on the command line: one member, which is called like the TEE."""

    sample: SampleClaims | None = None
    tdx: TdxClaims | None = None
    snp: SnpClaims | None = None

    @classmethod
    def of(cls, claims: Claims) -> Self:
        """Wrap them."""
        match claims:
            case SampleClaims():
                return cls(sample=claims)
            case TdxClaims():
                return cls(tdx=claims)
            case SnpClaims():
                return cls(snp=claims)
        assert_never(claims)

    @property
    def claims(self) -> Claims:
        """Unwrap them; raises `InvalidInput` unless there are claims of exactly one TEE."""
        found = [item for item in (self.sample, self.tdx, self.snp) if item is not None]
        if len(found) != 1:
            raise InvalidInput("claims", f"claims of {len(found)} TEEs, not of one")
        return found[0]
