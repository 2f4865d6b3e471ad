"""The register's requests: decode, apply the rule of `csi.broker.rules` in one transaction, encode the answer.

Whether the guest may ask at all was decided before (`csi.broker.appraise`).
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from csi.broker import leases
from csi.broker import rules as register
from csi.broker.audit import Event
from csi.broker.liveness import LeaseClock
from csi.broker.owner import Owner
from csi.broker.release import Allocate, ReleasePolicy
from csi.broker.rows import StoredVolume
from csi.broker.sessions import Guest
from csi.broker.store import Store
from csi.broker.tickets import Tickets
from csi.broker.vault import Vault
from csi.core.errors import LeaseLost, NotFound, NotReleased
from csi.core.header_digest import header_digest
from csi.core.sealed import HEADER_PARTS_BYTES, Profile
from csi.core.secret import Secret
from csi.kbs import strict_json, volumes_api
from csi.kbs.claim_name import UNNAMED, ClaimName
from csi.kbs.register import Lease, VolumeRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request of a guest that the policy lets use a volume of this name, by one workload or several."""

    guest: Guest
    workloads: tuple[str, ...]
    volume_id: str
    body: bytes
    policy: ReleasePolicy
    tickets: Tickets
    session_id: str

    def event(self, action: str, detail: str = "") -> Event:
        """The entry of the audit log."""
        return Event(actor=self.guest.acting_for(self.workloads), action=action, subject=self.volume_id, detail=detail)

    @property
    def ticket(self) -> str:
        """What a change of this volume in this session has to present."""
        return self.tickets.of(self.session_id, self.volume_id)

    def check_ticket(self, ticket: str) -> None:
        """Raise `NotReleased` unless the guest itself has read the answer to `open` in this session."""
        self.tickets.check(ticket, self.session_id, self.volume_id)

    def check_owner(self, stored: StoredVolume) -> None:
        """Raise `NotReleased` for a volume of another owner, whatever patterns say."""
        names = {UNNAMED} | self.guest.named
        self._require(any(stored.owner is None or stored.owner.admits(self.workloads, name) for name in names))

    def check_use(self, stored: StoredVolume, used_as: ClaimName) -> None:
        """The same for the one claim that the guest wants to use it as."""
        self._require(stored.owner is None or stored.owner.admits(self.workloads, used_as))

    def check_named(self, used_as: ClaimName) -> None:
        """Raise `NotReleased` for names that the guest's measured policy doesn't give."""
        if used_as not in {UNNAMED} | self.guest.named:
            raise NotReleased(f"no rule of the guest's measured policy uses a volume as {used_as}")

    def _require(self, admitted: bool) -> None:
        if not admitted:
            raise NotReleased(
                f"volume {self.volume_id} belongs to another workload or claim; an operator can hand it over: "
                f"sealed-local broker volume hand-over {self.volume_id} --to {self.workloads[0]}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """Answers calls; every answer is a secret until it is encrypted."""

    store: Store
    vault: Vault
    liveness: LeaseClock
    clock: Callable[[], float] = time.time
    random: Callable[[int], bytes] = os.urandom

    def open(self, call: Call) -> Secret:
        """The record and the secret; the first contact allocates both."""
        request = strict_json.decode(call.body, volumes_api.OpenRequest, "open")
        call.check_named(request.used_as)
        profile, owner = request.profile, Owner(workload=call.workloads[0], used_as=request.used_as)

        def check(stored: StoredVolume) -> Event:
            call.check_use(stored, request.used_as)
            register.check_open(stored.record, profile)
            return call.event("secret-released", f"revision={stored.record.revision} state={stored.record.state}")

        claim = (owner, call.event("claimed", f"by={owner}"))
        stored = self.store.release(call.volume_id, check, claim)
        if stored is None:
            self._allocate(call, profile, owner)
            stored = self.store.release(call.volume_id, check, claim)
        if stored is None or stored.wrapped_secret is None:
            raise NotFound(f"there is no secret of volume {call.volume_id}")
        secret = self.vault.unwrap(stored.wrapped_secret, *secret_purpose(stored.record))
        return self._answer(stored.record, secret=volumes_api.text_of(secret), ticket=call.ticket)

    def lease(self, call: Call) -> Secret:
        """Take the volume's lease, without which nothing is changed."""
        request = strict_json.decode(call.body, volumes_api.LeaseRequest, "lease")
        call.check_ticket(request.ticket)
        wanted = Lease(
            digest=volumes_api.lease_digest(request.lease),
            holder=call.guest.name,
            seconds=call.policy.lease_seconds,
        )
        instead = None if request.instead is None else volumes_api.lease_digest(request.instead)

        def rule(record: VolumeRecord) -> VolumeRecord:
            taken = leases.take(
                record, wanted, instead=instead, remaining=partial(self.liveness.remaining, call.volume_id)
            )
            # Counted before it is stored: nobody comes in between, and a lease that is not stored matters to nobody.
            self.liveness.extend(call.volume_id, taken.lease or wanted)
            return taken

        return self._change(call, rule, call.event("lease-taken", f"seconds={wanted.seconds}"))

    def renew(self, volume_id: str, body: bytes) -> bytes:
        """A sign of life of the guest that holds the lease."""
        request = strict_json.decode(body, volumes_api.HeldLeaseRequest, "renew")

        def rule(record: VolumeRecord) -> VolumeRecord:
            self.liveness.extend(volume_id, leases.hold(record, volumes_api.lease_digest(request.lease)))
            return record

        record = self._of_holder(volume_id, rule, "lease-renewed")
        return strict_json.encode(volumes_api.LeaseAnswer(seconds=0 if record.lease is None else record.lease.seconds))

    def release(self, volume_id: str, body: bytes) -> bytes:
        """The guest that held the lease has stopped writing."""
        request = strict_json.decode(body, volumes_api.HeldLeaseRequest, "release")
        digest = volumes_api.lease_digest(request.lease)
        self._of_holder(volume_id, lambda record: leases.release(record, digest), "lease-released")
        return strict_json.encode(volumes_api.LeaseAnswer(seconds=0))

    def _of_holder(self, volume_id: str, rule: Callable[[VolumeRecord], VolumeRecord], action: str) -> VolumeRecord:
        """Whoever asks has shown nothing but a lease, and learns of nothing but that."""
        event = Event(actor="the holder of the lease", action=action, subject=volume_id)
        try:
            return self.store.change(volume_id, rule, event)
        except NotFound:
            raise LeaseLost(f"the lease of volume {volume_id} is not this guest's any more") from None

    def begin_format(self, call: Call) -> Secret:
        """Ask for the permission to format."""
        request = strict_json.decode(call.body, volumes_api.BeginFormatRequest, "begin-format")
        call.check_ticket(request.ticket)
        epoch = self.store.epoch()

        def rule(record: VolumeRecord) -> VolumeRecord:
            return register.begin_format(
                _held(record, request.lease),
                revision=request.revision,
                nonce=request.nonce,
                payload_bytes=request.payload_bytes,
                measurement=call.guest.claims.measurement,
                epoch=epoch,
                now_unix=int(self.clock()),
                lifetime_seconds=call.policy.format_deadline_seconds,
            )

        event = call.event("format-begun", f"payload_bytes={request.payload_bytes}")
        # Given once and kept nowhere: what it becomes a part of is in the volume's header alone.
        return self._change(call, rule, event, share=self.random(volumes_api.SECRET_BYTES))

    def commit_format(self, call: Call) -> Secret:
        """Say that the volume is formatted."""
        request = strict_json.decode(call.body, volumes_api.CommitFormatRequest, "commit-format")
        call.check_ticket(request.ticket)
        header = volumes_api.decode_header(request.header, "commit-format.header")
        digest = header_digest(header).hex()

        def rule(record: VolumeRecord) -> VolumeRecord:
            return register.commit_format(
                _held(record, request.lease),
                revision=request.revision,
                nonce=request.nonce,
                measurement=call.guest.claims.measurement,
                header_sha256=digest,
                payload_bytes=request.payload_bytes,
            )

        parts = Secret(header[:HEADER_PARTS_BYTES])
        wrapped = self.vault.wrap(parts, *header_purpose(call.volume_id, digest))
        return self._change(call, rule, call.event("formatted", f"header_sha256={digest}"), wrapped_header=wrapped)

    def header(self, call: Call) -> Secret:
        """The header that was committed, for a disk that has lost both copies."""
        request = strict_json.decode(call.body, volumes_api.HeaderRequest, "header")
        call.check_ticket(request.ticket)

        def check(stored: StoredVolume) -> Event:
            call.check_owner(stored)
            register.check_open(stored.record, stored.record.profile)
            return call.event("header-released")

        stored = self.store.release(call.volume_id, check)
        wrapped = self.store.header(call.volume_id)
        if stored is None or stored.record.header_sha256 is None or wrapped is None:
            raise NotFound(f"the broker keeps no header of volume {call.volume_id}")
        parts = self.vault.unwrap(wrapped, *header_purpose(call.volume_id, stored.record.header_sha256))
        return self._answer(stored.record, header=volumes_api.encode_header(parts.reveal()))

    def begin_open(self, call: Call) -> Secret:
        """Announce a generation."""
        request = strict_json.decode(call.body, volumes_api.BeginOpenRequest, "begin-open")
        call.check_ticket(request.ticket)
        epoch = self.store.epoch()

        def rule(record: VolumeRecord) -> VolumeRecord:
            return register.begin_open(
                _held(record, request.lease),
                revision=request.revision,
                nonce=request.nonce,
                generation=request.generation,
                epoch=epoch,
            )

        return self._change(call, rule, call.event("open-begun", f"generation={request.generation}"))

    def commit_open(self, call: Call) -> Secret:
        """Say that the announced generation is on the disk."""
        request = strict_json.decode(call.body, volumes_api.CommitOpenRequest, "commit-open")
        call.check_ticket(request.ticket)

        def rule(record: VolumeRecord) -> VolumeRecord:
            return register.commit_open(
                _held(record, request.lease),
                revision=request.revision,
                nonce=request.nonce,
                generation=request.generation,
            )

        return self._change(call, rule, call.event("opened", f"generation={request.generation}"))

    def _change(
        self,
        call: Call,
        rule: Callable[[VolumeRecord], VolumeRecord],
        event: Event,
        share: bytes | None = None,
        wrapped_header: bytes | None = None,
    ) -> Secret:
        record = self.store.change(call.volume_id, rule, event, check=call.check_owner, wrapped_header=wrapped_header)
        return self._answer(record, share=None if share is None else volumes_api.text_of(Secret(share)))

    def _answer(self, record: VolumeRecord, **members: str | None) -> Secret:
        return volumes_api.encode_answer(volumes_api.Answer(record=record, epoch=self.store.epoch(), **members))

    def _allocate(self, call: Call, profile: Profile, owner: Owner) -> None:
        if call.policy.allocate is Allocate.NEVER:
            raise NotReleased(
                f'volume {call.volume_id} is not in the register, and the policy says allocate = "never"; '
                f"if it is meant to be new: sealed-local broker volume allocate {call.volume_id}"
            )
        record, wrapped = new_volume(self.vault, call.volume_id, profile, random=self.random)
        self.store.allocate(record, wrapped, call.event("allocated", f"profile={profile} owner={owner}"), owner=owner)


ACTIONS: dict[str, Callable[[Volumes, Call], Secret]] = {
    "open": Volumes.open,
    "header": Volumes.header,
    "lease": Volumes.lease,
    "begin-format": Volumes.begin_format,
    "commit-format": Volumes.commit_format,
    "begin-open": Volumes.begin_open,
    "commit-open": Volumes.commit_open,
}
"""By the last part of the request path."""

LEASE_ACTIONS: dict[str, Callable[[Volumes, str, bytes], bytes]] = {"renew": Volumes.renew, "release": Volumes.release}
"""The same, of the requests that need no session."""


def _held(record: VolumeRecord, lease: str) -> VolumeRecord:
    """The record, if the guest has its lease. Raises `LeaseLost`."""
    leases.hold(record, volumes_api.lease_digest(lease))
    return record


def new_volume(
    vault: Vault, volume_id: str, profile: Profile, *, random: Callable[[int], bytes] = os.urandom
) -> tuple[VolumeRecord, bytes]:
    """The first record of a volume and its secret, wrapped; nothing is stored yet."""
    record = register.allocate(volume_id, profile)
    return record, vault.wrap(Secret(random(volumes_api.SECRET_BYTES)), *secret_purpose(record))


def secret_purpose(record: VolumeRecord) -> tuple[str, ...]:
    """What a volume's wrapped secret is bound to."""
    return "volume", record.volume_id, str(record.key_version)


def header_purpose(volume_id: str, header_sha256: str) -> tuple[str, ...]:
    """What a volume's wrapped header is bound to: it is no other volume's, and none that the volume had before."""
    return "header", volume_id, header_sha256
