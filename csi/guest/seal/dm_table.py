"""The kernel's table line of an opened volume: the exact one that its profile must show, and nothing else.

This check alone catches null ciphers, other targets, other offsets, discards and sizes, whatever cryptsetup was made to
believe. Lines as the kernel prints them: cryptsetup 2.6.1 to 2.8.8 on Linux 6.1 and 6.12.
"""

from typing import assert_never

from csi.core.device_number import DeviceNumber
from csi.core.errors import LiveMismatch
from csi.core.sealed import PAYLOAD_OFFSET, Profile
from csi.core.size import SECTOR_BYTES
from csi.guest.seal.profiles import unsealed

_XTS = (
    "0 {sectors} crypt aes-xts-plain64 :64:logon:cryptsetup:{uuid}-d0 0 {device} {offset} "
    "3 no_read_workqueue no_write_workqueue sector_size:4096"
)


def expected(profile: Profile, *, uuid: str, payload_bytes: int, device: DeviceNumber) -> str:
    """The line for a volume of that profile whose payload has that many bytes on that device."""
    return _line(profile).format(
        sectors=payload_bytes // SECTOR_BYTES,
        uuid=uuid,
        device=device,
        offset=PAYLOAD_OFFSET // SECTOR_BYTES,
    )


def require(shown: str, wanted: str) -> None:
    """Raises `LiveMismatch` unless the whole table is the one expected line."""
    if shown.strip() != wanted:
        raise LiveMismatch(f"the kernel maps {shown.strip()[:200]!r} instead of {wanted!r}; it is not used")


def _line(profile: Profile) -> str:
    match profile:
        case Profile.XTS:
            return _XTS
        case Profile.NONE:
            raise unsealed()
        case _:
            assert_never(profile)
