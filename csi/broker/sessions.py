"""Sessions of the KBS protocol: a nonce given out, then an attested guest. Kept in memory: a restart ends them all."""

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import lru_cache
from typing import assert_never

from csi.broker.claims import Claims
from csi.core.errors import NotReleased, Unavailable
from csi.kbs import base64url
from csi.kbs import messages as kbs
from csi.kbs.claim_name import ClaimName
from csi.kbs.jwk import EcJwk, Jwk, RsaJwk

_NONCE_BYTES = 32
_ID_BYTES = 16
_MAX_SESSIONS = 20_000
"""A bound on memory. Anyone may begin a session and, where the sample TEE is allowed, attest in it; see `Standing`."""
_MAX_OF_ONE_MEASUREMENT = 2_000
_MAX_UNKNOWN_CHARACTERS = 32 * 1024 * 1024
"""Of tokens of guests that belong to no workload. A token shows up to 64 KiB of init-data, which its host chooses."""


class Standing(Enum):
    """What a session has shown so far. When places run out, the oldest of the first kind here gives way, then of the
    second; one of a workload gives way to others of its own measurement only.
    """

    UNKNOWN = auto()
    """Its guest attested and belongs to no workload: there is nothing that it could be given."""
    BEGUN = auto()
    """It has not attested yet, which takes a guest a second."""
    KNOWN = auto()
    """Its guest belongs to a workload."""


def since_boot() -> float:
    """Seconds on a clock that nobody can set; it goes on while the machine sleeps, as the lifetime of a session does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NotAttested(NotReleased):
    """There is no valid session or token; the guest attests (again) and repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """An attested guest: what it proved, and the key that everything for it is encrypted to."""

    claims: Claims
    key: Jwk
    named: frozenset[ClaimName] = frozenset()
    """What its measured policy says that it uses volumes as."""

    @property
    def name(self) -> str:
        """How it is called in logs: by its key, which no other guest has, pods of one image neither (RFC 7638)."""
        return thumbprint(self.key)

    def acting_for(self, workloads: Iterable[str]) -> str:
        """How it is called in the audit log: the key and the workloads as which it acted."""
        return f"{self.name} {'+'.join(workloads) or '-'}"


@lru_cache(maxsize=1024)
def thumbprint(key: Jwk) -> str:
    """The JWK thumbprint of RFC 7638: SHA-256 over the members that make the key, in base64url."""
    match key:
        case EcJwk():
            members = {"crv": key.crv, "kty": "EC", "x": key.x, "y": key.y}
        case RsaJwk():
            members = {"e": key.e, "kty": "RSA", "n": key.n}
        case _:
            assert_never(key)
    return base64url.encode(hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks in an attested session."""

    session_id: str
    guest: Guest


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """State between `/auth` and the end of the session. `guest` and `token` are there once it has attested."""

    id: str
    tee: str
    nonce: str
    ends: float
    """By the sessions' own clock, which is not the time of day."""
    standing: Standing = Standing.BEGUN
    guest: Guest | None = None
    token: str | None = None


class Sessions:
    """All sessions of this process. Thread-safe."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = since_boot,
        random: Callable[[int], bytes] = os.urandom,
        lifetime_seconds: float = kbs.SESSION_SECONDS,
        capacity: int = _MAX_SESSIONS,
        measurement_capacity: int = _MAX_OF_ONE_MEASUREMENT,
        unknown_capacity: int = _MAX_UNKNOWN_CHARACTERS,
    ) -> None:
        self._clock = clock
        self._random = random
        self._lifetime = lifetime_seconds
        self._capacity = capacity
        self._measurement_capacity = measurement_capacity
        self._unknown_capacity = unknown_capacity
        self._unknown_characters = 0
        self._lock = threading.Lock()
        # Each in the order in which sessions end; dictionaries are used as ordered sets.
        self._sessions: dict[str, Session] = {}
        self._by_standing: dict[Standing, dict[str, None]] = {standing: {} for standing in Standing}
        self._by_measurement: dict[str, dict[str, None]] = {}

    def begin(self, tee: str) -> Session:
        """A new session with a nonce of its own; raises `Unavailable` when all places belong to guests of workloads."""
        session = Session(
            id=self._random(_ID_BYTES).hex(),
            tee=tee,
            nonce=base64.b64encode(self._random(_NONCE_BYTES)).decode("ascii"),
            ends=self._clock() + self._lifetime,
        )
        with self._lock:
            self._forget_ended()
            if len(self._sessions) >= self._capacity:
                self._make_room()
            self._add(session)
        return session

    def find(self, session_id: str | None) -> Session:
        """The live session of a cookie; raises `NotAttested`."""
        with self._lock:
            session = self._sessions.get(session_id or "")
        if session is None or session.ends <= self._clock():
            raise NotAttested("no session: the cookie is missing, unknown or expired; attest again")
        return session

    def remaining_seconds(self, session: Session) -> float:
        """How long a session lasts from now on."""
        return max(0.0, session.ends - self._clock())

    def attested(self, session: Session, guest: Guest, token: str, *, known: bool) -> tuple[Session, str]:
        """Remember that a session's guest has attested, and whether it belongs to a workload. Its end stays.

        A nonce attests one guest: who was second in the same session gets the session and the token of the first, which are
        of use with that one's key only. Raises `NotAttested` where the session gave way meanwhile.
        """
        standing = Standing.KNOWN if known else Standing.UNKNOWN
        done = replace(session, guest=guest, token=token, standing=standing)
        measurement = guest.claims.measurement
        with self._lock:
            present = self._sessions.get(session.id)
            if present is None:
                raise NotAttested("the session gave way to others while the guest attested; attest again")
            if present.token is not None:
                return present, present.token
            self._leave_standing(session)
            of_same = self._by_measurement.get(measurement, {})
            if len(of_same) >= self._measurement_capacity:
                self._forget(next(iter(of_same)))
            self._sessions[session.id] = done
            self._by_standing[standing][session.id] = None
            self._by_measurement.setdefault(measurement, {})[session.id] = None
            if standing is Standing.UNKNOWN:
                self._unknown_characters += len(token)
                while self._unknown_characters > self._unknown_capacity:
                    self._forget(next(iter(self._by_standing[Standing.UNKNOWN])))
        return done, token

    def _add(self, session: Session) -> None:
        self._sessions[session.id] = session
        self._by_standing[session.standing][session.id] = None

    def _forget_ended(self) -> None:
        """Sessions stand in the order in which they end, so looking at the front is enough."""
        now = self._clock()
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if oldest.ends > now:
                return
            self._forget(oldest.id)

    def _make_room(self) -> None:
        for standing in (Standing.UNKNOWN, Standing.BEGUN):
            oldest = next(iter(self._by_standing[standing]), None)
            if oldest is not None:
                self._forget(oldest)
                return
        raise Unavailable("too many guests have attested; try again in some minutes")

    def _leave_standing(self, session: Session) -> None:
        for standing in Standing:
            self._by_standing[standing].pop(session.id, None)

    def _forget(self, session_id: str) -> None:
        session = self._sessions.pop(session_id)
        self._leave_standing(session)
        if session.standing is Standing.UNKNOWN and session.token is not None:
            self._unknown_characters -= len(session.token)
        if session.guest is not None:
            of_same = self._by_measurement[session.guest.claims.measurement]
            of_same.pop(session_id, None)
            if not of_same:
                del self._by_measurement[session.guest.claims.measurement]
