"""One connection of the front: frames in, bytes out, and never a wait."""

import socket
from contextlib import suppress
from typing import Final

from csi.guest.serve.frames import Frame, Reader, TooLong

_PIECE_BYTES: Final = 256 * 1024
_ENOUGH_BYTES: Final = 16 * 1024 * 1024
"""Unsent bytes beyond which the other side is not read: a peer that doesn't read must not fill the guest's memory."""


class Link:
    """See above."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._reader = Reader()
        self._unsent = bytearray()

    @property
    def waits_to_send(self) -> bool:
        """Whether there is something to send that the peer did not take yet."""
        return bool(self._unsent)

    @property
    def is_full(self) -> bool:
        """Whether so much waits that no more should be read for this peer."""
        return len(self._unsent) > _ENOUGH_BYTES

    def receive(self) -> list[Frame | TooLong] | None:
        """The frames that are whole now; None when the peer is gone."""
        try:
            received = self.socket.recv(_PIECE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return self._reader.feed(received) if received else None

    def send(self, raw: bytes) -> None:
        """Send now what the peer takes, and the rest by `flush`. A peer that is gone is noticed by `receive`."""
        self._unsent += raw
        self.flush()

    def flush(self) -> None:
        """Send more of what waits."""
        try:
            while self._unsent:
                sent = self.socket.send(self._unsent[:_PIECE_BYTES])
                del self._unsent[:sent]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()

    def close(self) -> None:
        """End the connection."""
        with suppress(OSError):
            self.socket.close()
