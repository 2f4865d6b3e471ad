"""The table of sessions is bounded, and who has proved nothing never pushes out a guest that has."""

from dataclasses import dataclass

import pytest

from csi.broker.release import Claims
from csi.broker.sessions import Guest, NotAttested, Sessions
from csi.core.errors import Unavailable
from csi.kbs.jwk import EcJwk

GUEST = Guest(
    claims=Claims(tee="sample", launch_digest="abcde", init_data=None, svn="1"),
    key=EcJwk(crv="P-256", alg="ECDH-ES+A256KW", x="x", y="y"),
)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(clock=clock, capacity=3, lifetime_seconds=300)


def test_a_full_table_loses_its_oldest_session_that_has_not_attested(sessions: Sessions) -> None:
    first, second, third = (sessions.begin("sample") for _ in range(3))
    sessions.attested(first, GUEST, "token")
    newest = sessions.begin("sample")
    assert sessions.find(first.id).guest == GUEST
    assert sessions.find(third.id) == third
    assert sessions.find(newest.id) == newest
    with pytest.raises(NotAttested):
        sessions.find(second.id)


def test_a_flood_neither_refuses_newcomers_nor_ends_attested_sessions(sessions: Sessions) -> None:
    attested = sessions.begin("sample")
    sessions.attested(attested, GUEST, "token")
    for _ in range(1000):
        newest = sessions.begin("sample")
        assert sessions.find(newest.id) == newest
    assert sessions.find(attested.id).guest == GUEST
    assert len(sessions._sessions) == 3
    assert len(sessions._unattested) == 2


def test_newcomers_wait_where_all_have_attested(sessions: Sessions, clock: Clock) -> None:
    for _ in range(3):
        sessions.attested(sessions.begin("sample"), GUEST, "token")
    with pytest.raises(Unavailable, match="too many guests"):
        sessions.begin("sample")
    clock.now += 300
    sessions.begin("sample")
    assert len(sessions._sessions) == 1


def test_expired_sessions_leave_nothing_behind(sessions: Sessions, clock: Clock) -> None:
    sessions.begin("sample")
    clock.now += 301
    last = sessions.begin("sample")
    assert list(sessions._sessions) == list(sessions._unattested) == [last.id]


def test_a_session_that_gave_way_while_it_attested_is_gone(sessions: Sessions) -> None:
    first = sessions.begin("sample")
    for _ in range(3):
        sessions.begin("sample")
    sessions.attested(first, GUEST, "token")
    with pytest.raises(NotAttested):
        sessions.find(first.id)
