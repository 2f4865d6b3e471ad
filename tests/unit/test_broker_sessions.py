"""The table of sessions is bounded, and who may have nothing never pushes out a guest that may."""

from dataclasses import dataclass

import pytest

from csi.broker.claims import SampleClaims
from csi.broker.sessions import Guest, NotAttested, Session, Sessions, Standing
from csi.core.errors import Unavailable
from csi.kbs.jwk import EcJwk

GUEST = Guest(
    claims=SampleClaims(launch_digest="abcde", init_data=None, svn="1"),
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
    sessions.attested(first, GUEST, "token", known=True)
    newest = sessions.begin("sample")
    assert sessions.find(first.id).guest == GUEST
    assert sessions.find(third.id) == third
    assert sessions.find(newest.id) == newest
    with pytest.raises(NotAttested):
        sessions.find(second.id)


def test_a_flood_neither_refuses_newcomers_nor_ends_attested_sessions(sessions: Sessions) -> None:
    attested = sessions.begin("sample")
    sessions.attested(attested, GUEST, "token", known=True)
    for _ in range(1000):
        newest = sessions.begin("sample")
        assert sessions.find(newest.id) == newest
    assert sessions.find(attested.id).guest == GUEST
    assert len(sessions._sessions) == 3
    assert len(sessions._by_standing[Standing.BEGUN]) == 2


def test_newcomers_wait_where_all_have_attested(sessions: Sessions, clock: Clock) -> None:
    for _ in range(3):
        sessions.attested(sessions.begin("sample"), GUEST, "token", known=True)
    with pytest.raises(Unavailable, match="too many guests"):
        sessions.begin("sample")
    clock.now += 300
    sessions.begin("sample")
    assert len(sessions._sessions) == 1


def test_expired_sessions_leave_nothing_behind(sessions: Sessions, clock: Clock) -> None:
    sessions.begin("sample")
    clock.now += 301
    last = sessions.begin("sample")
    assert list(sessions._sessions) == list(sessions._by_standing[Standing.BEGUN]) == [last.id]


def test_a_session_that_gave_way_while_it_attested_is_gone(sessions: Sessions) -> None:
    first = sessions.begin("sample")
    for _ in range(3):
        sessions.begin("sample")
    for use in (lambda: sessions.attested(first, GUEST, "token", known=True), lambda: sessions.find(first.id)):
        with pytest.raises(NotAttested):
            use()


def test_two_guests_with_one_nonce_at_once_are_one(sessions: Sessions) -> None:
    """Both looked the session up before either was done."""
    begun = sessions.begin("sample")
    first = sessions.attested(begun, guest(1), "first", known=True)
    assert sessions.attested(begun, guest(2), "second", known=False) == first
    assert first[1] == "first"
    assert sessions.find(begun.id) == first[0]


def guest(number: int) -> Guest:
    claims = SampleClaims(launch_digest="abcde", init_data=f"sha384:{number:096x}", svn="1")
    return Guest(claims=claims, key=GUEST.key)


def attest(sessions: Sessions, number: int, *, known: bool) -> Session:
    return sessions.attested(sessions.begin("sample"), guest(number), "token", known=known)[0]


def test_guests_of_no_workload_give_way_before_those_that_are_about_to_attest(sessions: Sessions) -> None:
    begun = sessions.begin("sample")
    unknown, other = (attest(sessions, number, known=False) for number in range(2))
    sessions.begin("sample")
    with pytest.raises(NotAttested):
        sessions.find(unknown.id)
    assert sessions.find(begun.id) == begun
    assert sessions.find(other.id) == other


def test_an_allowed_guest_gets_in_after_20_000_hostile_sessions() -> None:
    sessions = Sessions()
    waiting = sessions.begin("sample")
    for number in range(25_000):
        attest(sessions, number, known=False)
    assert len(sessions._sessions) == 20_000
    assert len(sessions._by_measurement) == 19_999
    allowed, _ = sessions.attested(waiting, GUEST, "token", known=True)
    newcomer = attest(sessions, -1 & 7, known=True)
    for number in range(25_000):
        attest(sessions, number, known=False)
    assert sessions.find(allowed.id).token == sessions.find(newcomer.id).token == "token"


def test_one_measurement_has_a_cap_and_pushes_out_its_own_only() -> None:
    sessions = Sessions(capacity=100, measurement_capacity=3)
    other = attest(sessions, 1, known=True)
    of_one = [attest(sessions, 2, known=True) for _ in range(50)]
    assert [session for session in of_one if session.id in sessions._sessions] == of_one[-3:]
    assert sessions.find(other.id) == other


def test_long_tokens_of_guests_of_no_workload_push_out_one_another_only() -> None:
    sessions = Sessions(unknown_capacity=3_000)
    known = sessions.begin("sample")
    sessions.attested(known, GUEST, 5_000 * "k", known=True)
    unknown = [sessions.begin("sample") for _ in range(10)]
    for number, session in enumerate(unknown):
        sessions.attested(session, guest(number), 1_000 * "u", known=False)
    assert [session for session in unknown if session.id in sessions._sessions] == unknown[-3:]
    assert sessions.find(known.id).guest == GUEST


def test_a_clock_that_is_set_neither_ends_nor_prolongs_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions()
    session = sessions.begin("sample")
    for jump in (1e9, -1e9):
        monkeypatch.setattr("time.time", lambda jump=jump: jump)
        assert sessions.find(session.id) == session
        assert 299 < sessions.remaining_seconds(session) <= 300
