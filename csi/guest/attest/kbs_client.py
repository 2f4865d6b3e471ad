"""The guest's side of the KBS protocol 0.4.0: attest, then read resources and use our broker's volume register.

Works against Trustee for resources; the register is our broker's own. Nothing is cached on disk, and secrets arrive
encrypted to a key that lives in this process only.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Self

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from csi.core.errors import Busy, InvalidInput, NotReleased, Refused, Unavailable
from csi.core.header_digest import header_digest
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.guest.attest.attester import Attester
from csi.guest.attest.https import HttpsTransport, Response
from csi.guest.attest.kbs_answers import (
    answer_of_the_broker,
    check_hash,
    check_register,
    detail,
    raise_error,
    session_cookie,
    session_is_over,
    session_is_unknown,
)
from csi.guest.attest.platform import Platform
from csi.guest.attest.token_signer import signer_of
from csi.guest.broker_settings import BrokerSettings
from csi.kbs import jwe, jwk, signed_answers, strict_json, volumes_api
from csi.kbs import messages as kbs
from csi.kbs.claim_name import UNNAMED, ClaimName
from csi.kbs.register import VolumeRecord, VolumeState

_ATTEMPTS = 3
_NONCE_BYTES = 32
_JSON = {"Content-Type": "application/json"}
_Request = Callable[[str], msgspec.Struct]
"""A request about a volume, made with the ticket that it presents."""


@cache
def process_key() -> ec.EllipticCurvePrivateKey:
    """One key for the life of the process: evidence binds it, so a new one for each call would only cost time. Never made
    before a fork: it would be the key of several processes.
    """
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What the answer to `open` left here: the ticket, the session that it is of, and the register's epoch at that time."""

    ticket: str
    session: str | None
    epoch: str
    used_as: ClaimName


class BrokerRegister:
    """A `csi.kbs.register.Register` at a broker, and its resources. Attests at first use and when a session ends.

    Not for use by several threads at once.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        attester: Attester | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._attester = attester or Platform().attester(settings)
        self._key = key or process_key()
        self._init_data = settings.init_data
        self._cookie: str | None = None
        self._held: dict[str, _Held] = {}
        self._leases: dict[str, str] = {}
        self._authorities = settings.ca_pem
        self._signer: ec.EllipticCurvePublicKey | None = None
        self._transport = HttpsTransport(
            url=settings.url,
            ca_pem=settings.ca_pem,
            timeout_seconds=settings.timeout_seconds,
            max_body_bytes=2 * kbs.BODY_LIMIT_BYTES,
            sleep=sleep,
        )

    def get_resource(self, uri: str) -> Secret:
        """The bytes of `kbs:///repository/type/tag`, exactly as they were stored (a trailing newline stays)."""
        path = kbs.ResourcePath.parse_uri(uri)
        response = self._attested("GET", f"{kbs.PREFIX}/resource/{path}", lambda: None)
        if response.status != 200:
            raise_error(response, f"resource {path}", self._key)
        with answer_of_the_broker():
            return jwe.decrypt(self._key, response.body)

    def open(self, volume_id: str, profile: Profile, used_as: ClaimName = UNNAMED) -> tuple[VolumeRecord, Secret]:
        """See `Register.open`."""
        answer = self._asked(volume_id, "open", lambda _: volumes_api.OpenRequest(profile=profile, used_as=used_as))
        with answer_of_the_broker():
            record, secret = answer.record, volumes_api.secret_of(answer)
        if secret is None or answer.ticket is None:
            raise Refused(f"the broker answered without the secret or the ticket of volume {volume_id}")
        if record.profile is not profile:
            raise Refused(f"the broker answered with profile {record.profile} for volume {volume_id}, not {profile}")
        self._held[volume_id] = _Held(ticket=answer.ticket, session=self._cookie, epoch=answer.epoch, used_as=used_as)
        return record, secret

    def take_lease(self, record: VolumeRecord, secret: str, *, instead: str | None = None) -> VolumeRecord:
        """Take the lease without which nothing is changed; `instead` is one of this guest that it gives up. The answer is
        the record as it is under the lease. Raises `Busy` while another guest has it.
        """
        answer = self._change(
            record, "lease", lambda ticket: volumes_api.LeaseRequest(ticket=ticket, lease=secret, instead=instead)
        )
        if answer.lease is None or answer.lease.digest != volumes_api.lease_digest(secret):
            raise Refused(f"the broker gave no lease of volume {record.volume_id}")
        self.hold_lease(record.volume_id, secret)
        return answer

    def hold_lease(self, volume_id: str, secret: str) -> None:
        """Use a lease that this guest took before."""
        self._leases[volume_id] = secret

    def signer_pem(self) -> str:
        """Who signs the broker's answers, for a process that goes on without a session."""
        if self._signer is None:
            raise Unavailable("the broker's token does not tell who signs its answers")
        pem = self._signer.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return pem.decode("ascii")

    def begin_format(self, record: VolumeRecord, *, nonce: str, payload_bytes: int) -> tuple[VolumeRecord, Secret]:
        """See `Register.begin_format`."""
        answer = self._changed(
            record,
            "begin-format",
            lambda ticket: volumes_api.BeginFormatRequest(
                ticket=ticket,
                lease=self._lease_of(record),
                revision=record.revision,
                nonce=nonce,
                payload_bytes=payload_bytes,
            ),
        )
        granted = answer.record
        # The one answer that lets data be overwritten is read twice, even from a broker that is trusted.
        if granted.state is not VolumeState.FORMATTING or granted.grant is None or granted.grant.nonce != nonce:
            raise Refused(f"the broker gave no permission to format volume {record.volume_id}")
        with answer_of_the_broker():
            share = volumes_api.share_of(answer)
        if share is None:
            raise Refused(f"the broker gave no share of a key for volume {record.volume_id}")
        return granted, share

    def commit_format(self, record: VolumeRecord, *, nonce: str, header: bytes, payload_bytes: int) -> VolumeRecord:
        """See `Register.commit_format`."""
        answer = self._change(
            record,
            "commit-format",
            lambda ticket: volumes_api.CommitFormatRequest(
                ticket=ticket,
                lease=self._lease_of(record),
                revision=record.revision,
                nonce=nonce,
                header=volumes_api.encode_header(header),
                payload_bytes=payload_bytes,
            ),
        )
        if answer.header_sha256 != header_digest(header).hex():
            raise Refused(f"the broker committed another header of volume {record.volume_id} than it was given")
        return answer

    def header(self, record: VolumeRecord) -> bytes:
        """See `Register.header`."""
        answer = self._changed(record, "header", lambda ticket: volumes_api.HeaderRequest(ticket=ticket))
        with answer_of_the_broker():
            found = None if answer.header is None else volumes_api.decode_header(answer.header, "answer.header")
        if found is None or header_digest(found).hex() != record.header_sha256:
            raise Refused(f"the broker answered without the header of volume {record.volume_id}")
        return found

    def begin_open(self, record: VolumeRecord, *, nonce: str, generation: int) -> VolumeRecord:
        """See `Register.begin_open`."""
        return self._change(
            record,
            "begin-open",
            lambda ticket: volumes_api.BeginOpenRequest(
                ticket=ticket,
                lease=self._lease_of(record),
                revision=record.revision,
                nonce=nonce,
                generation=generation,
            ),
        )

    def commit_open(self, record: VolumeRecord, *, nonce: str, generation: int) -> VolumeRecord:
        """See `Register.commit_open`."""
        return self._change(
            record,
            "commit-open",
            lambda ticket: volumes_api.CommitOpenRequest(
                ticket=ticket,
                lease=self._lease_of(record),
                revision=record.revision,
                nonce=nonce,
                generation=generation,
            ),
        )

    def close(self) -> None:
        """Drop the connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lease_of(self, record: VolumeRecord) -> str:
        try:
            return self._leases[record.volume_id]
        except KeyError:
            raise Refused(f"the lease of volume {record.volume_id} was not taken; nothing is changed without") from None

    def _change(self, record: VolumeRecord, action: str, request: _Request) -> VolumeRecord:
        return self._changed(record, action, request).record

    def _changed(self, record: VolumeRecord, action: str, request: _Request) -> volumes_api.Answer:
        held = self._held.get(record.volume_id)
        if held is None:
            raise Refused(
                f"volume {record.volume_id} was not opened with the broker; a change needs the ticket of that"
            )
        answer = self._asked(record.volume_id, action, request, record.profile)
        if answer.epoch != held.epoch:
            raise Busy(f"the broker's register was restored while volume {record.volume_id} was at work; start over")
        _check_same_volume(answer.record, record)
        return answer

    def _asked(
        self, volume_id: str, action: str, request: _Request, reopen: Profile | None = None
    ) -> volumes_api.Answer:
        """One request about a volume. A ticket ends with its session: with `reopen`, the volume is opened again for one."""
        path = volumes_api.volume_path(volume_id, action)

        def body() -> bytes:
            held = self._held.get(volume_id)
            if reopen is not None and (held is None or held.session != self._cookie):
                self.open(volume_id, reopen, UNNAMED if held is None else held.used_as)
                held = self._held[volume_id]
            return strict_json.encode(request("" if held is None else held.ticket))

        nonce = secrets.token_hex(_NONCE_BYTES)
        response = self._attested("POST", path, body, {signed_answers.NONCE_HEADER: nonce})
        check_register(response, f"volume {volume_id}")
        self._check_signature(path, nonce, response)
        if response.status != 200:
            raise_error(response, f"volume {volume_id}", self._key)
        with answer_of_the_broker():
            answer = volumes_api.decode_answer(jwe.decrypt(self._key, response.body))
        if answer.record.volume_id != volume_id:
            raise Refused(f"the broker answered for volume {answer.record.volume_id} instead of {volume_id}")
        return answer

    def _check_signature(self, path: str, nonce: str, response: Response) -> None:
        """Raises `Unavailable` for an answer that the broker has not signed for this request: a proxy's, or an old one."""
        with answer_of_the_broker():
            if self._signer is None:
                raise InvalidInput("token", "the broker has none that tells who signs its answers")
            signature = response.headers.get(signed_answers.SIGNATURE_HEADER)
            signed_answers.check(
                self._signer, signature, path=path, nonce=nonce, status=response.status, body=response.body
            )

    def _attested(
        self, method: str, path: str, body: Callable[[], bytes | None], headers: Mapping[str, str] | None = None
    ) -> Response:
        """One exchange in an attested session. One that ended is renewed, three tries in all; a refusal is the answer."""
        forgotten = False
        for _ in range(_ATTEMPTS):
            refusal = self._handshake() if self._cookie is None else None
            forgotten = refusal is not None
            if refusal is None and self._cookie is not None:
                content = body()
                response = self._transport.exchange(
                    method, path, content, {**_JSON, **(headers or {}), "Cookie": self._cookie}
                )
                if not session_is_over(response):
                    return response
                refusal = f"the broker refuses {path}: {detail(response)}"
                forgotten = session_is_unknown(response)
            self._cookie = None
        if forgotten:
            # Nobody has said no: a broker that starts again and again, or several behind one address, each with its own
            # sessions.
            raise Unavailable(f"the broker loses this guest's sessions: {refusal} ({_ATTEMPTS} tries)")
        raise NotReleased(f"{refusal} ({_ATTEMPTS} tries)")

    def _handshake(self) -> str | None:
        """Attest. Returns what a repetition may change: that the server, restarted meanwhile, knows the session no more.
        Refused evidence raises `NotReleased`: the next would be made in the same way.
        """
        request = kbs.Request(
            version=kbs.PROTOCOL_VERSION,
            tee=self._attester.tee,
            extra_params={"supported-hash-algorithms": list(kbs.HASH_ALGORITHMS)},
        )
        first = self._transport.exchange("POST", f"{kbs.PREFIX}/auth", strict_json.encode(request), _JSON)
        if first.status != 200:
            raise NotReleased(f"the broker refuses to talk to this guest: {detail(first)}")
        cookie = session_cookie(first)
        with answer_of_the_broker():
            challenge = strict_json.decode(first.body, kbs.Challenge, "Challenge")
        check_hash(challenge)
        attestation = strict_json.encode(self._attestation(challenge.nonce))
        second = self._transport.exchange("POST", f"{kbs.PREFIX}/attest", attestation, {**_JSON, "Cookie": cookie})
        if second.status != 200:
            why = f"the broker does not accept this guest's evidence: {detail(second)}"
            if session_is_unknown(second):
                return why
            raise NotReleased(why)
        with answer_of_the_broker():
            self._signer = signer_of(second.body, self._authorities)
        self._cookie = cookie
        return None

    def _attestation(self, nonce: str) -> kbs.Attestation:
        runtime = kbs.RuntimeData(nonce=nonce, tee_pubkey=jwk.from_ec_key(self._key.public_key()))
        evidence = self._attester.evidence(kbs.runtime_digest(runtime))
        return kbs.Attestation(
            init_data=kbs.InitData(format="toml", body=self._init_data) if self._init_data else None,
            runtime_data=runtime,
            tee_evidence=kbs.Evidence(primary_evidence=evidence),
        )


def _check_same_volume(answer: VolumeRecord, asked: VolumeRecord) -> None:
    """What no change of a guest ever changes must be as it was."""
    if (answer.key_version, answer.profile) != (asked.key_version, asked.profile):
        raise Refused(f"the broker answered with another key version or profile for volume {asked.volume_id}")
