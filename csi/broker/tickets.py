"""By what a change of the register proves that it comes from the guest itself, and not from whoever relays its evidence.

Another relying party of the same guest can attest here in the guest's name and then holds an attested session. It can't
read what is encrypted to the guest's key, though. The answer to `open` carries a ticket there, which every change presents.
"""

import hashlib
import hmac
import os
from collections.abc import Callable

from csi.core.errors import NotReleased
from csi.core.framing import framed

_KEY_BYTES = 32


class Tickets:
    """Tickets of this process: each is of one session and one volume, and can't be guessed. They end with the session."""

    def __init__(self, *, random: Callable[[int], bytes] = os.urandom) -> None:
        self._key = random(_KEY_BYTES)

    def of(self, session_id: str, volume_id: str) -> str:
        """The ticket, in hex. Nothing has to be remembered for it."""
        return hmac.digest(self._key, framed(session_id.encode(), volume_id.encode()), hashlib.sha256).hex()

    def check(self, ticket: str, session_id: str, volume_id: str) -> None:
        """Raise `NotReleased` unless the ticket is that one."""
        if not hmac.compare_digest(ticket.encode(), self.of(session_id, volume_id).encode()):
            raise NotReleased(f"the ticket is not one of this session for volume {volume_id}; open the volume again")
