"""What the broker does, apart from HTTP: attest guests, release resources, keep the register. Raises domain errors only.

A guest gets an answer only encrypted to the key that its evidence vouches for.
"""

import hmac
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from csi.broker import appraise, shown_init_data
from csi.broker.audit import Event, Ration
from csi.broker.claims import Claims
from csi.broker.liveness import LeaseClock, Liveness
from csi.broker.release import ReleasePolicy
from csi.broker.sessions import Caller, Guest, NotAttested, Session, Sessions
from csi.broker.shown_init_data import ShownInitData
from csi.broker.store import Store
from csi.broker.tickets import Tickets
from csi.broker.tokens import Attested, TokenIssuer
from csi.broker.vault import Vault
from csi.broker.verifiers import Expected, Verifier, verifier_for
from csi.broker.volumes import ACTIONS, LEASE_ACTIONS, Call, Volumes
from csi.core.errors import Busy, LeaseLost, NotFound, NotReleased, Refused, SealedLocalError, Untrusted
from csi.core.secret import Secret
from csi.kbs import claim_name, init_data, jwe, jwk, strict_json, volumes_api
from csi.kbs import messages as kbs
from csi.kbs.claim_name import ClaimName

_log = logging.getLogger(__name__)
_FAILURES_A_MINUTE = 1
_REFUSALS_A_MINUTE = 60


@dataclass(slots=True, kw_only=True)
class Broker:
    """All parts of a running broker. `policy` may be replaced while it runs; a call uses the one it started with."""

    store: Store
    vault: Vault
    issuer: TokenIssuer
    policy: ReleasePolicy
    verifiers: Mapping[str, Verifier]
    sessions: Sessions = field(default_factory=Sessions)
    tickets: Tickets = field(default_factory=Tickets)
    liveness: LeaseClock = field(default_factory=Liveness)
    clock: Callable[[], float] = time.time
    _failures: Ration = field(init=False)
    _refusals: Ration = field(init=False)

    def __post_init__(self) -> None:
        """Anyone can fail to attest; a guest that attested proved at least what it is."""
        self._failures = Ration(self.store.note, clock=self.clock, limit=_FAILURES_A_MINUTE)
        self._refusals = Ration(self.store.note, clock=self.clock, limit=_REFUSALS_A_MINUTE)

    @property
    def volumes(self) -> Volumes:
        """The register's requests."""
        return Volumes(store=self.store, vault=self.vault, liveness=self.liveness, clock=self.clock)

    def challenge(self, body: bytes) -> tuple[Session, kbs.Challenge]:
        """`/auth`: a session and its nonce, for a TEE that could be accepted."""
        request = strict_json.decode(body, kbs.Request, "Request")
        if request.version != kbs.PROTOCOL_VERSION:
            raise NotReleased(
                f"KBS Client Protocol Version Mismatch: expect ={kbs.PROTOCOL_VERSION} "
                f"while the request is {request.version}"
            )
        verifier_for(request.tee, self.verifiers)
        appraise.check_tee(self.policy, request.tee)
        session = self.sessions.begin(request.tee)
        return session, kbs.Challenge(nonce=session.nonce, extra_params="")

    def attest(self, session_id: str | None, body: bytes) -> tuple[Session, str]:
        """`/attest`: verify the evidence and issue a token. In an attested session the same token again."""
        session = self.sessions.find(session_id)
        if session.token is not None:
            return session, session.token
        try:
            attested = self._examined(session, body)
        except SealedLocalError as error:
            self._failures.note(
                Event(actor="unattested", action="attestation-failed", subject=session.tee, detail=str(error))
            )
            raise
        token = self.issuer.issue(attested)
        _log.info("attested", extra={"guest": attested.guest.name, "init_data": attested.guest.claims.init_data})
        workloads = appraise.memberships(self.policy, attested.guest.claims)
        self._note_attested(attested.guest, workloads)
        return self.sessions.attested(session, attested.guest, token, known=bool(workloads))

    def caller(self, session_id: str | None) -> Caller:
        """Who asks, by an attested session only; raises `NotAttested`.

        A guest shows its token to other services, so the token must not change what this broker remembers: whoever was
        shown one could announce and commit generations, and the guest's own disk would count as an old one.
        """
        session = self.sessions.find(session_id)
        if session.guest is None:
            raise NotAttested("this session has not attested; the register takes no bearer token instead")
        return Caller(session_id=session.id, guest=session.guest)

    def guest(self, session_id: str | None, bearer: str | None) -> Guest:
        """Who asks for a resource: by an attested session first, else by a token; raises `NotAttested`.

        A token is enough here: the answer can be read with the guest's key alone.
        """
        if session_id is not None:
            try:
                session = self.sessions.find(session_id)
            except NotAttested:
                if bearer is None:
                    raise
            else:
                if session.guest is not None:
                    return session.guest
        if bearer is None:
            raise NotAttested("neither an attested session nor a bearer token")
        return self.issuer.verify(bearer)

    def resource(self, guest: Guest, path: kbs.ResourcePath) -> bytes:
        """A resource as JWE for a guest that may read it."""
        policy = self.policy
        with self._refusals_noted(guest, policy, "resource", str(path)):
            work = appraise.check_resource(policy, guest.claims, (path.repository, path.kind, path.tag))
        event = Event(actor=guest.acting_for([work.name]), action="resource-released", subject=str(path))
        secret = self.vault.unwrap(self.store.resource(str(path)), "resource", str(path))
        self.store.note(event)
        return jwe.encrypt(guest.key, secret)

    def put_resource(self, actor: str, path: kbs.ResourcePath, content: Secret) -> None:
        """Store a resource."""
        event = Event(actor=actor, action="resource-stored", subject=str(path))
        self.store.put_resource(str(path), self.vault.wrap(content, "resource", str(path)), event)

    def delete_resource(self, actor: str, path: kbs.ResourcePath) -> None:
        """Destroy a resource."""
        self.store.delete_resource(str(path), Event(actor=actor, action="resource-deleted", subject=str(path)))

    def volume(self, caller: Caller, volume_id: str, action: str, body: bytes) -> bytes:
        """One request to the register, answered as JWE."""
        guest = caller.guest
        volumes_api.check_volume_id(volume_id)
        if action not in ACTIONS:
            raise NotFound(f"the register has no action {action[:40]!r}; there are: {', '.join(ACTIONS)}")
        policy = self.policy
        with self._refusals_noted(guest, policy, action, volume_id):
            workloads = appraise.workloads_for_volume(policy, guest.claims, volume_id)
            call = Call(
                guest=guest,
                workloads=workloads,
                volume_id=volume_id,
                body=body,
                policy=policy,
                tickets=self.tickets,
                session_id=caller.session_id,
            )
            answer = ACTIONS[action](self.volumes, call)
        return jwe.encrypt(guest.key, answer)

    def lease(self, volume_id: str, action: str, body: bytes) -> bytes:
        """One request of whoever holds a volume's lease; the lease is all that it has to show."""
        volumes_api.check_volume_id(volume_id)
        if action not in LEASE_ACTIONS:
            raise NotFound(f"a lease has no action {action[:40]!r}; there are: {', '.join(LEASE_ACTIONS)}")
        return LEASE_ACTIONS[action](self.volumes, volume_id, body)

    def _refusals_noted(self, guest: Guest, policy: ReleasePolicy, action: str, subject: str) -> "_RefusalNoted":
        return _RefusalNoted(self._refusals, guest, policy, action, subject)

    def close(self) -> None:
        """Write what is left to write, and close the database."""
        try:
            for ration in (self._failures, self._refusals):
                ration.flush()
        finally:
            self.store.close()

    def note(self, action: str, subject: str, detail: str = "") -> None:
        """Something that the program or its operator did, for the audit log."""
        self.store.note(Event(actor="broker", action=action, subject=subject, detail=detail))

    def refuse_administration(self, subject: str, detail: str) -> None:
        """Note that somebody without the administrator's token wanted to be one; anyone can, so it is rationed."""
        self._failures.note(Event(actor="unknown", action="administration-refused", subject=subject, detail=detail))

    def _note_attested(self, guest: Guest, workloads: tuple[str, ...]) -> None:
        """A guest of no workload may come as often as it likes, so those are rationed."""
        claims = guest.claims
        event = Event(
            actor=guest.acting_for(workloads),
            action="attested",
            subject=claims.tee,
            detail=f"measurement={claims.measurement} init_data={claims.init_data or 'none'}",
        )
        (self.store if workloads else self._refusals).note(event)

    def _examined(self, session: Session, body: bytes) -> Attested:
        message = strict_json.decode(body, kbs.Attestation, "Attestation")
        if not hmac.compare_digest(message.runtime_data.nonce.encode(), session.nonce.encode()):
            raise NotReleased("the nonce is not the one of this session")
        return self._verified(session.tee, message)

    def _verified(self, tee: str, message: kbs.Attestation) -> Attested:
        appraise.check_tee(self.policy, tee)
        jwk.check(message.runtime_data.tee_pubkey, "runtime-data.tee-pubkey")
        if message.tee_evidence.additional_evidence not in ("", "{}"):
            raise NotReleased("this broker can't verify evidence of additional devices")
        expected = Expected(
            report_data=kbs.runtime_digest(message.runtime_data, message.tee_evidence.additional_evidence),
            init_data_text=_init_data_text(message.init_data),
        )
        claims = verifier_for(tee, self.verifiers).verify(message.tee_evidence.primary_evidence, expected)
        return Attested(
            guest=Guest(
                claims=claims,
                key=message.runtime_data.tee_pubkey,
                named=_named(claims, expected.init_data_text),
            ),
            runtime=message.runtime_data,
            additional_evidence=message.tee_evidence.additional_evidence,
            report_data=expected.report_data,
            affirmed=self._affirms(claims),
            init_data=_shown(claims, expected.init_data_text),
        )

    def _affirms(self, claims: Claims) -> bool:
        """What the token tells other brokers. This one decides anew at every request, by its policy."""
        try:
            appraise.check_known(self.policy, claims)
        except NotReleased:
            return False
        return True


@dataclass(frozen=True, slots=True)
class _RefusalNoted:
    """Writes what an attested guest was denied (by the policy) or refused (by the record) into the audit log."""

    ration: Ration
    guest: Guest
    policy: ReleasePolicy
    action: str
    subject: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NotReleased | Refused | Busy | LeaseLost | Untrusted):
            noted = "denied" if isinstance(error, NotReleased) else "refused"
            actor = self.guest.acting_for(appraise.memberships(self.policy, self.guest.claims))
            self.ration.note(Event(actor=actor, action=noted, subject=self.subject, detail=f"{self.action}: {error}"))


def _named(claims: Claims, shown: str | None) -> frozenset[ClaimName]:
    """By the text that the guest showed, if it is the measured one."""
    return frozenset() if shown is None or claims.init_data is None else claim_name.named_in(shown)


def _shown(claims: Claims, text: str | None) -> ShownInitData | None:
    """The same for what the token shows of it."""
    return None if text is None or claims.init_data is None else shown_init_data.shown(text)


def _init_data_text(sent: kbs.InitData | None) -> str | None:
    if sent is None:
        return None
    if sent.format != "toml":
        raise NotReleased(f"init-data of format {sent.format!r}; only toml is read")
    init_data.check_size(sent.body)
    return sent.body
