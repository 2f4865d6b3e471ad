"""The one answer of the broker that lets data be overwritten counts only when it is a permission for this very guest."""

import dataclasses

import pytest

from csi.core.errors import Refused, Unavailable
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.guest.attest.kbs_client import BrokerRegister
from csi.kbs.register import FormatGrant, VolumeState
from tests.rpc.test_kbs_client import ALLOCATED, NONCE, Script, guest, server

__all__ = ["guest", "server"]  # fixtures

GRANTED = dataclasses.replace(
    ALLOCATED,
    state=VolumeState.FORMATTING,
    revision=2,
    payload_bytes=4096,
    grant=FormatGrant(nonce=NONCE, measurement="m", deadline_unix=1, epoch="0e" * 16),
)


SHARE = Secret(b"r" * 32)


def asked_with(server: Script, guest: BrokerRegister, answer: object, share: Secret | None = SHARE) -> object:
    server.answers["open"] = server.sealed(ALLOCATED, Secret(b"s" * 32))  # type: ignore[assignment]
    guest.open("pvc-1", Profile.XTS)
    guest.hold_lease("pvc-1", "1e" * 32)
    server.answers["begin-format"] = server.sealed(answer, None, share)  # type: ignore[arg-type,assignment]
    return guest.begin_format(ALLOCATED, nonce=NONCE, payload_bytes=4096)


def test_a_permission_for_this_guest_is_one(server: Script, guest: BrokerRegister) -> None:
    assert asked_with(server, guest, GRANTED) == (GRANTED, SHARE)


@pytest.mark.parametrize("share", [None, Secret(b"short")])
def test_a_permission_without_the_brokers_share_of_the_key_is_none(
    server: Script, guest: BrokerRegister, share: Secret | None
) -> None:
    with pytest.raises((Refused, Unavailable), match="share"):
        asked_with(server, guest, GRANTED, share)


@pytest.mark.parametrize(
    "changes",
    [
        {"grant": FormatGrant(nonce="0f" * 32, measurement="m", deadline_unix=1, epoch="0e" * 16)},
        {"grant": None},
        {"state": VolumeState.ALLOCATED},
        {"state": VolumeState.ACTIVE, "header_sha256": "ab" * 32, "announced": 1},
    ],
    ids=["for another guest's nonce", "no grant", "not formatting", "formatted by another"],
)
def test_any_other_answer_is_no_permission(server: Script, guest: BrokerRegister, changes: dict[str, object]) -> None:
    with pytest.raises(Refused, match="gave no permission to format volume pvc-1"):
        asked_with(server, guest, dataclasses.replace(GRANTED, **changes))  # type: ignore[arg-type]
