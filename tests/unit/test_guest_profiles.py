"""Profile `none` is refused wherever a guest decides by the profile: nothing is ever opened without encryption."""

from collections.abc import Callable

import pytest

from csi.core.command import LocalRunner
from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.guest.seal import cryptsetup, dm_table, keys, luks_header, profiles, state_record
from csi.guest.seal.state_record import RecordKind, StateRecord

NONE_RECORD = StateRecord(kind=RecordKind.INTENT, profile=Profile.NONE, key_version=1, sequence=0, payload_bytes=4096)
KEYS = keys.derive(Secret(bytes(32)), "pvc-1", 1)
USES: dict[str, Callable[[], object]] = {
    "format": lambda: cryptsetup.luks_format(
        LocalRunner(), Profile.NONE, header=0, device="/dev/null", passphrase=Secret(b""), volume_key=0, luks_uuid=""
    ),
    "open": lambda: cryptsetup.open_volume(
        LocalRunner(), Profile.NONE, header=0, device="/dev/null", name="x", passphrase=Secret(b""), read_only=True
    ),
    "table": lambda: dm_table.expected(Profile.NONE, uuid="", payload_bytes=4096, device=DeviceNumber(8, 16)),
    "header": lambda: luks_header._document(Profile.NONE),
    "record": lambda: state_record.encode(NONE_RECORD, KEYS, "pvc-1"),
    "freshness": lambda: profiles.freshness(Profile.NONE),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_volume_that_is_not_sealed_is_refused_wherever_its_profile_counts(use: Callable[[], object]) -> None:
    with pytest.raises(Refused, match="profile none is not sealed"):
        use()
