"""Any order of guests that begin, attest at the same time in one session, run out of time or of places: each session has
one token for all time, and what is counted is what is there.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from csi.broker.claims import SampleClaims
from csi.broker.sessions import Guest, NotAttested, Session, Sessions, Standing
from csi.core.errors import Unavailable
from csi.kbs.jwk import EcJwk

CAPACITY, OF_ONE, OF_UNKNOWN, LIFETIME = 5, 2, 3, 10.0
KEY = EcJwk(crv="P-256", alg="ECDH-ES+A256KW", x="x", y="y")


class Crowd(RuleBasedStateMachine):
    """`attesting` holds requests on their way: each has looked its session up, and is not done."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.made = 0.0, 0
        self.sessions = Sessions(
            clock=lambda: self.now,
            lifetime_seconds=LIFETIME,
            capacity=CAPACITY,
            measurement_capacity=OF_ONE,
            unknown_capacity=OF_UNKNOWN,
        )
        self.begun: list[Session] = []
        self.attesting: list[Session] = []
        self.tokens: dict[str, str] = {}

    @rule()
    def begin(self) -> None:
        try:
            self.begun.append(self.sessions.begin("sample"))
        except Unavailable:
            held = self.sessions._sessions.values()
            assert len(held) == CAPACITY
            assert all(session.guest is not None for session in held)

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def look_up(self, data: st.DataObject) -> None:
        try:
            found = self.sessions.find(data.draw(st.sampled_from(self.begun)).id)
        except NotAttested:
            return
        assert found.token == self.tokens.get(found.id)
        if found.token is None:
            self.attesting.append(found)

    @precondition(lambda self: self.attesting)
    @rule(data=st.data(), measurement=st.integers(0, 2), known=st.booleans())
    def attest(self, data: st.DataObject, measurement: int, known: bool) -> None:
        session = self.attesting.pop(data.draw(st.integers(0, len(self.attesting) - 1)))
        claims = SampleClaims(launch_digest="abcde", init_data=f"sha384:{measurement:096x}", svn="1")
        self.made += 1
        try:
            done, token = self.sessions.attested(session, Guest(claims=claims, key=KEY), str(self.made), known=known)
        except NotAttested:
            return
        assert token == done.token == self.tokens.setdefault(session.id, token)
        assert (done.id, done.nonce) == (session.id, session.nonce)

    @rule(seconds=st.sampled_from([1.0, LIFETIME]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_is_counted_is_there(self) -> None:
        held = self.sessions._sessions
        standing = {id_: kind for kind, ids in self.sessions._by_standing.items() for id_ in ids}
        assert standing == {session.id: session.standing for session in held.values()}
        measured = {id_: name for name, ids in self.sessions._by_measurement.items() for id_ in ids}
        assert measured == {one.id: one.guest.claims.measurement for one in held.values() if one.guest is not None}
        assert all(0 < len(ids) <= OF_ONE for ids in self.sessions._by_measurement.values())
        assert len(held) <= CAPACITY
        unknown = sum(len(one.token or "") for one in held.values() if one.standing is Standing.UNKNOWN)
        assert unknown == self.sessions._unknown_characters <= OF_UNKNOWN


TestCrowd = Crowd.TestCase
TestCrowd.settings = settings(max_examples=200, stateful_step_count=40)
