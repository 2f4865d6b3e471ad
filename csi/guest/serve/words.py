"""What the front and its workers say to one another: one message is one packet, its first byte says what it is."""

import struct
from dataclasses import dataclass
from typing import Final

MOUNT: Final = b"m"
"""To a worker: bound in nanoseconds as the caller gave it, then a SecureMountRequest."""
WATCH: Final = b"w"
"""To a worker: look after an open volume, whose id follows. From a worker: it looks after that volume from now on."""
ANSWER: Final = b"a"
"""From a worker: the ttRPC response."""
PASS_ON: Final = b"p"
"""From a worker: the request is not for a volume of the policy, so it is for the confidential-data-hub behind."""
DONE: Final = b"d"
"""From a worker: the volume that it looked after is closed."""

MOST_BYTES: Final = 64 * 1024
"""Longest packet. A SecureMount of a stock agent has 300 bytes."""

_NANOSECONDS: Final = 1_000_000_000
_BOUND: Final = struct.Struct(">q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A SecureMount as it came."""

    request: bytes
    seconds: float
    """How long the caller waits; 0 for no bound."""


def mount(request: bytes, timeout_nano: int) -> bytes:
    """The packet that hands a SecureMount to a worker."""
    return MOUNT + _BOUND.pack(timeout_nano) + request


def asked(packet: bytes) -> Asked:
    """A SecureMount as a worker gets it."""
    (nanoseconds,) = _BOUND.unpack_from(packet, len(MOUNT))
    return Asked(request=packet[len(MOUNT) + _BOUND.size :], seconds=max(0, nanoseconds) / _NANOSECONDS)
