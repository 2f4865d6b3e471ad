"""The launch measurement of an SEV-SNP guest, by the library `sev-snp-measure`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sevsnpmeasure import guest
from sevsnpmeasure.ovmf import OVMF
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS

from csi.core.errors import InvalidInput

_MOST_MEMORY_BYTES: Final = 64 * 1024 * 1024
"""Of what the firmware has measured beside itself. The library hashes page by page, whatever sizes the file has."""
_MOST_VCPUS: Final = 4096
"""The most that Linux' KVM gives a guest."""
_MOST_FEATURES: Final = (1 << 64) - 1
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
    if not 1 <= vcpus <= _MOST_VCPUS:
        raise InvalidInput("--vcpus", f"{vcpus} processors start no guest")
    if not 0 <= launch.guest_features <= _MOST_FEATURES:
        raise InvalidInput("--guest-features", f"{launch.guest_features:#x} is not a number of 64 bits")
    try:
        _check_size(launch.firmware)
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
    except (RuntimeError, ValueError, KeyError, IndexError, AssertionError, OverflowError) as error:
        raise InvalidInput(str(launch.firmware), f"can't be measured for SEV-SNP: {error}") from error
    return digest.hex()


def _check_size(firmware: Path) -> None:
    sizes = [section.size for section in OVMF(str(firmware)).metadata_items()]
    if sum(sizes) > _MOST_MEMORY_BYTES:
        raise ValueError(f"its sections have more than {_MOST_MEMORY_BYTES} bytes; no firmware is so large")
