"""The sealed volume format v1: names, offsets and the room it needs below the size that CSI reports.

Sizes were measured with cryptsetup 2.6.1, 2.7.5 and 2.8.8; `docs/sealed-format.md` describes every byte. Cryptography is
not here: the node plugin uses this module to size an LV, and it holds no keys.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from csi.core.size import KIB, MIB, round_up

HEADER_BYTES = 16 * MIB
"""One copy of the LUKS2 header: two binary headers with JSON, and the keyslot area."""
HEADER_PARTS_BYTES = 290_816
"""What of it says anything: the binary headers, their JSON and the one keyslot. The rest is zero."""

HEADER_A_OFFSET = 0
HEADER_B_OFFSET = 16 * MIB
STATE_RECORD_OFFSETS = (32 * MIB, 33 * MIB)
"""The two ping-pong state records; generation n lies at index n % 2."""

STATE_RECORD_BYTES = 4 * KIB
PAYLOAD_OFFSET = 34 * MIB
"""Where ciphertext of the filesystem starts; everything below is authenticated by MAC before it is parsed."""

PAYLOAD_BLOCK_BYTES = 4096
"""dm-crypt's sector size in every profile; the payload is a whole number of these."""


def header_of(parts: bytes) -> bytes:
    """A whole header copy from its parts, which may lack zeroes at their end."""
    return parts.ljust(HEADER_BYTES, b"\0")


class Freshness(StrEnum):
    """How much of an opened volume is known to be the newest. There is no word for all of it: no profile has that yet."""

    HEAD = "head"
    """Header and generation are the newest that the register committed. The payload's blocks are not bound to them: a host
    that keeps the newest head can show any older block, or all of them, and profile `xts` does not notice."""
    UNVERIFIED = "unverified"
    """Nothing of it: the broker keeps no register. A host can show any older state of the whole volume, or a blank disk."""


class Profile(StrEnum):
    """How a volume is sealed. A profile is versioned by its name: its meaning never changes."""

    NONE = "none"
    XTS = "xts"

    @property
    def is_sealed(self) -> bool:
        """Whether the guest encrypts the volume."""
        return needs(self) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a sealed volume needs of its device."""

    head_bytes: int
    """Room before the payload. It holds all that opens the volume: without it the rest is noise."""
    block_bytes: int
    """The payload is a whole number of these."""


def needs(profile: Profile) -> Needs | None:
    """What a profile needs of the device, None for a volume that isn't sealed: the one place that knows every profile."""
    match profile:
        case Profile.NONE:
            return None
        case Profile.XTS:
            return Needs(head_bytes=PAYLOAD_OFFSET, block_bytes=PAYLOAD_BLOCK_BYTES)
        case _:
            assert_never(profile)


RESERVED_PROFILES = ("xts-hmac",)
"""Names that the format defines and this version can't open yet; they are refused by name, never treated as unknown."""


def device_bytes(usable_bytes: int, profile: Profile) -> int:
    """The device size in bytes that gives at least `usable_bytes` inside the guest.

    Only the format's own room is counted; rounding to LVM extents comes on top.
    """
    needed = needs(profile)
    return usable_bytes if needed is None else needed.head_bytes + round_up(usable_bytes, needed.block_bytes)


def usable_bytes(device_size_bytes: int, profile: Profile) -> int:
    """What the guest can use of a device of that size in bytes; never negative. The inverse of `device_bytes`."""
    needed = needs(profile)
    if needed is None:
        return device_size_bytes
    payload = max(0, device_size_bytes - needed.head_bytes)
    return payload - payload % needed.block_bytes
