"""Sessions of the KBS protocol: a nonce given out, then an attested guest. Kept in memory: a restart ends them all."""

import base64
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from csi.broker.release import Claims
from csi.core.errors import NotReleased, Unavailable
from csi.kbs import messages as kbs
from csi.kbs.jwk import Jwk

_NONCE_BYTES = 32
_ID_BYTES = 16
_MAX_SESSIONS = 20_000
"""A bound on memory. Anyone may begin a session, so when it is reached the oldest that has not attested gives way; one that
has attested never does."""


class NotAttested(NotReleased):
    """There is no valid session or token; the guest attests (again) and repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """An attested guest: what it proved, and the key that everything for it is encrypted to."""

    claims: Claims
    key: Jwk

    @property
    def name(self) -> str:
        """How it is called in logs and the audit log."""
        return f"{self.claims.tee}:{self.claims.measurement}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """State between `/auth` and the end of the session. `guest` and `token` are there once it has attested."""

    id: str
    tee: str
    nonce: str
    expires: float
    guest: Guest | None = None
    token: str | None = None


class Sessions:
    """All sessions of this process. Thread-safe."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        lifetime_seconds: float = kbs.SESSION_SECONDS,
        capacity: int = _MAX_SESSIONS,
    ) -> None:
        self._clock = clock
        self._random = random
        self._lifetime = lifetime_seconds
        self._capacity = capacity
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._unattested: dict[str, None] = {}

    def begin(self, tee: str) -> Session:
        """A new session with a nonce of its own."""
        session = Session(
            id=self._random(_ID_BYTES).hex(),
            tee=tee,
            nonce=base64.b64encode(self._random(_NONCE_BYTES)).decode("ascii"),
            expires=self._clock() + self._lifetime,
        )
        with self._lock:
            self._forget_expired()
            if len(self._sessions) >= self._capacity:
                self._forget_oldest_unattested()
            self._sessions[session.id] = session
            self._unattested[session.id] = None
        return session

    def find(self, session_id: str | None) -> Session:
        """The live session of a cookie; raises `NotAttested`."""
        with self._lock:
            session = self._sessions.get(session_id or "")
        if session is None or session.expires <= self._clock():
            raise NotAttested("no session: the cookie is missing, unknown or expired; attest again")
        return session

    def attested(self, session: Session, guest: Guest, token: str) -> Session:
        """Remember that a session's guest has attested. Its end stays where it was."""
        done = replace(session, guest=guest, token=token)
        with self._lock:
            self._unattested.pop(session.id, None)
            if session.id in self._sessions:
                self._sessions[session.id] = done
        return done

    def _forget_expired(self) -> None:
        """Sessions stand in the order in which they expire, so looking at the front is enough."""
        now = self._clock()
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if oldest.expires > now:
                return
            self._forget(oldest.id)

    def _forget_oldest_unattested(self) -> None:
        oldest = next(iter(self._unattested), None)
        if oldest is None:
            raise Unavailable("too many guests have attested; try again in some minutes")
        self._forget(oldest)

    def _forget(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        self._unattested.pop(session_id, None)
