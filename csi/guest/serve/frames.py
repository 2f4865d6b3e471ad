"""ttRPC's frames: bytes to frames and back. A frame is kept as it came, so that what is passed on is the same bytes.

Ten bytes of header, big-endian: length of the payload u32, stream u32, kind u8, flags u8. Pure of I/O; what a payload means
is not looked at here.
"""

import struct
from dataclasses import dataclass
from typing import Final

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3
"""A part of a stream that has more than one message a way. Other kinds may come; they are passed on as they are."""

MOST_BYTES: Final = 4 * 1024 * 1024
"""Longest payload. Every implementation of the protocol has this bound, so no honest peer sends more."""

_HEADER: Final = struct.Struct(">IIBB")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, whole."""

    raw: bytes
    """Header and payload."""
    stream: int
    kind: int

    @property
    def payload(self) -> bytes:
        """What follows the header."""
        return self.raw[_HEADER.size :]


@dataclass(frozen=True, slots=True)
class TooLong:
    """A frame whose payload is over the bound. It is skipped, and the frames behind it are read as if it had not come."""

    stream: int
    kind: int
    length: int


def request(stream: int, payload: bytes) -> bytes:
    """The frame that begins a stream, of which nothing more is sent."""
    return _HEADER.pack(len(payload), stream, REQUEST, 0) + payload


def response(stream: int, payload: bytes) -> bytes:
    """The frame that ends a stream."""
    return _HEADER.pack(len(payload), stream, RESPONSE, 0) + payload


class Reader:
    """Cuts what arrives on one connection into frames, whatever the pieces are that it arrives in."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._skip = 0

    def feed(self, received: bytes) -> list[Frame | TooLong]:
        """The frames that are whole now."""
        found: list[Frame | TooLong] = []
        self._bytes += received
        self._skip_some()
        while not self._skip and len(self._bytes) >= _HEADER.size:
            length, stream, kind, _flags = _HEADER.unpack_from(self._bytes)
            if length > MOST_BYTES:
                found.append(TooLong(stream, kind, length))
                self._skip = _HEADER.size + length
                self._skip_some()
                continue
            end = _HEADER.size + length
            if len(self._bytes) < end:
                break
            found.append(Frame(bytes(self._bytes[:end]), stream, kind))
            del self._bytes[:end]
        return found

    def _skip_some(self) -> None:
        """Drop what has come of a frame that is too long; never more than has come is kept of it."""
        dropped = min(self._skip, len(self._bytes))
        del self._bytes[:dropped]
        self._skip -= dropped
