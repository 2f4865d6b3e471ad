"""The launch measurement of an SEV-SNP guest, by the library `sev-snp-measure`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sevsnpmeasure import guest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS

from csi.core.errors import InvalidInput

VCPU_TYPES: tuple[str, ...] = tuple(CPU_SIGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What QEMU starts a guest with. `guest_features` are the bits SEV_FEATURES of the first processor's state."""

    firmware: Path
    kernel: Path
    initrd: Path | None
    command_line: str
    vcpu_type: str
    guest_features: int


def measurements(launch: Launch, vcpus: Iterable[int]) -> list[str]:
    """Hex values, one for each number of processors: their states are measured, so each number has its own.

    Raises `InvalidInput` for firmware that does not measure the kernel.
    """
    return [_measurement(launch, count) for count in vcpus]


def _measurement(launch: Launch, vcpus: int) -> str:
    if vcpus < 1:
        raise InvalidInput("--vcpus", f"{vcpus} processors start no guest")
    try:
        digest: bytes = guest.calc_launch_digest(
            SevMode.SEV_SNP,
            vcpus,
            CPU_SIGS[launch.vcpu_type],
            str(launch.firmware),
            str(launch.kernel),
            "" if launch.initrd is None else str(launch.initrd),
            launch.command_line,
            launch.guest_features,
        )
    # What the library raises for a firmware of another kind depends on the place where it notices.
    except (RuntimeError, ValueError, KeyError, IndexError, AssertionError) as error:
        raise InvalidInput(str(launch.firmware), f"can't be measured for SEV-SNP: {error}") from error
    return digest.hex()
