"""Renewing and giving back a lease at the broker. Needs no session: the lease's secret is the proof, its answer is signed.

One try a call, soon over: who renews has to know before the lease ends, and comes again.
"""

import secrets

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from csi.core.errors import InvalidInput, LeaseLost, Unavailable
from csi.guest.attest.https import HttpsTransport
from csi.guest.lease_note import LeaseNote
from csi.kbs import messages as kbs
from csi.kbs import signed_answers, strict_json, volumes_api

_NONCE_BYTES = 32
_LONGEST_TRY_SECONDS = 10.0


class LeaseClient:
    """One lease at its broker. Not for use by several threads at once."""

    def __init__(self, note: LeaseNote) -> None:
        self._volume_id, self._secret = note.volume_id, note.secret
        self._signer = _public_key(note.signer_pem)
        self._transport = HttpsTransport(
            url=note.url,
            ca_pem=note.ca_pem,
            timeout_seconds=min(note.timeout_seconds, _LONGEST_TRY_SECONDS, note.seconds / 4),
            max_body_bytes=kbs.BODY_LIMIT_BYTES,
            try_delays_seconds=(),
        )

    def renew(self) -> int:
        """How many seconds the lease lasts from the moment of this call on. Raises `LeaseLost` or `Unavailable`."""
        return self._call("renew").seconds

    def release(self) -> None:
        """Give the lease back: this guest writes nothing any more. One that is lost already is fine."""
        try:
            self._call("release")
        except LeaseLost:
            return

    def close(self) -> None:
        """Drop the connection."""
        self._transport.close()

    def _call(self, action: str) -> volumes_api.LeaseAnswer:
        path, nonce = volumes_api.lease_path(self._volume_id, action), secrets.token_hex(_NONCE_BYTES)
        body = strict_json.encode(volumes_api.HeldLeaseRequest(lease=self._secret))
        headers = {"Content-Type": "application/json", signed_answers.NONCE_HEADER: nonce}
        response = self._transport.exchange("POST", path, body, headers)
        signature = response.headers.get(signed_answers.SIGNATURE_HEADER)
        try:
            signed_answers.check(
                self._signer, signature, path=path, nonce=nonce, status=response.status, body=response.body
            )
            if response.status == 200:
                return strict_json.decode(response.body, volumes_api.LeaseAnswer, "answer")
            error = volumes_api.decode_error(strict_json.decode(response.body, kbs.ErrorBody, "error"))
        except InvalidInput as problem:
            # A proxy's answer or a broken one ends no lease: time does, if no better answer comes.
            raise Unavailable(f"the broker's answer can't be used: {problem}") from problem
        raise error if isinstance(error, LeaseLost) else Unavailable(f"the broker: {error}")


def _public_key(pem: str) -> ec.EllipticCurvePublicKey:
    key = load_pem_public_key(pem.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidInput("signer", "is not a key of an elliptic curve")
    return key
