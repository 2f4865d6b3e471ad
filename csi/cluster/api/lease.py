"""The lease of the one helper that acts: a Lease of coordination.k8s.io/v1, in the protocol of Kubernetes' own parts.

Clocks of two machines are never compared. A helper takes a lease of another only after it has itself seen it unchanged for
the whole duration, and the holder stops some seconds before anybody may do that.
"""

import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from csi.cluster.api.client import Api, ApiRefused
from csi.core.errors import SealedLocalError

_log = logging.getLogger(__name__)

DURATION_SECONDS: Final = 15.0
RENEW_WITHIN_SECONDS: Final = 10.0
"""After that long without a renewal the holder acts no more."""
RETRY_SECONDS: Final = 3.0

Clock = Callable[[], float]


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    holder_identity: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None
    acquire_time: str | None = None


class LeaseObject(msgspec.Struct, frozen=True):
    """The object, as far as it is read."""

    metadata: _Metadata = _Metadata()
    spec: _Spec = _Spec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A lease as it was first seen in this form, and when, on this machine's clock."""

    lease: LeaseObject
    since: float


def may_take(observed: Observed, me: str, now: float) -> bool:
    """Whether the lease is this helper's, nobody's, or one that its holder has let go by saying nothing."""
    holder = observed.lease.spec.holder_identity
    return holder in (me, None, "") or now - observed.since >= DURATION_SECONDS


class LeaseKeeper:
    """Takes the lease and renews it: `attempt`, every `RETRY_SECONDS`. Whoever acts asks `held` before each act."""

    def __init__(self, api: Api, namespace: str, name: str, me: str, clock: Clock) -> None:
        self._api = api
        self._folder = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._me = me
        self._clock = clock
        self._observed: Observed | None = None
        self._renewed: float | None = None

    @property
    def held(self) -> bool:
        """Whether nobody else can have the lease now."""
        return self._renewed is not None and self._clock() - self._renewed < RENEW_WITHIN_SECONDS

    def attempt(self) -> bool:
        """Take or renew it where that is allowed; returns `held`. What the server refuses is tried again later."""
        # Before the request: for as long as it takes, the lease may already be running.
        began = self._clock()
        try:
            if self._write(began):
                self._renewed = began
        except SealedLocalError as error:
            _log.info("lease not renewed", extra={"error": str(error)})
        return self.held

    def give_up(self) -> None:
        """Let the next one begin at once."""
        if not self.held or self._observed is None:
            return
        try:
            self._put(self._observed.lease, holder="", now=_now())
        except SealedLocalError as error:
            _log.info("lease not given back", extra={"error": str(error)})
        self._renewed = None

    def _write(self, now: float) -> bool:
        seen = self._look()
        if seen is None:
            made = self._api.create(self._folder, self._wanted(LeaseObject(), self._me, _now()))
            self._note(msgspec.json.decode(made, type=LeaseObject), now)
            return True
        self._note(seen, now)
        if self._observed is None or not may_take(self._observed, self._me, now):
            return False
        return self._put(seen, holder=self._me, now=_now())

    def _look(self) -> LeaseObject | None:
        try:
            return msgspec.json.decode(self._api.get(f"{self._folder}/{self._name}"), type=LeaseObject)
        except ApiRefused as error:
            if error.is_not_found:
                return None
            raise

    def _put(self, seen: LeaseObject, *, holder: str, now: str) -> bool:
        try:
            written = self._api.replace(f"{self._folder}/{self._name}", self._wanted(seen, holder, now))
        except ApiRefused as error:
            if error.is_conflict:
                return False
            raise
        self._note(msgspec.json.decode(written, type=LeaseObject), self._clock())
        return True

    def _note(self, lease: LeaseObject, now: float) -> None:
        if self._observed is None or self._observed.lease != lease:
            self._observed = Observed(lease=lease, since=now)

    def _wanted(self, seen: LeaseObject, holder: str, now: str) -> Any:
        spec = seen.spec
        is_new = spec.holder_identity != self._me
        metadata = {"name": self._name}
        if seen.metadata.resource_version:
            metadata["resourceVersion"] = seen.metadata.resource_version
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": int(DURATION_SECONDS) if holder else 1,
                "acquireTime": now if is_new or not spec.acquire_time else spec.acquire_time,
                "renewTime": now,
                "leaseTransitions": (spec.lease_transitions or 0) + (1 if is_new and holder else 0),
            },
        }


def _now() -> str:
    """For people: nobody compares it with another machine's clock."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
