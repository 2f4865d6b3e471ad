"""A profile's meaning is decided at every place that needs it: the type checker asks, and `none` is refused at each."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.core.command import LocalRunner
from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.guest.seal import cryptsetup, dm_table, keys, luks_header, profiles, state_record
from csi.guest.seal.state_record import RecordKind, StateRecord

ROOT = Path(__file__).resolve().parents[2]
PLACES = {
    "csi/core/sealed.py": 2,
    "csi/guest/policy.py": 1,
    "csi/guest/seal/cryptsetup.py": 1,
    "csi/guest/seal/dm_table.py": 1,
    "csi/guest/seal/luks_header.py": 1,
    "csi/guest/seal/profiles.py": 1,
    "csi/guest/seal/state_record.py": 1,
}


def test_one_more_profile_is_asked_for_at_every_place_that_has_to_decide(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "csi", tmp_path / "csi", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    sealed = tmp_path / "csi/core/sealed.py"
    before = sealed.read_text()
    sealed.write_text(before.replace('    XTS = "xts"\n', '    XTS = "xts"\n    NEWER = "newer"\n', 1))
    assert sealed.read_text() != before
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "-p", "csi.guest"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    asked = re.findall(r"^(\S+?):\d+: error: Argument 1 to .assert_never. .*Profile.NEWER", done.stdout, re.MULTILINE)
    assert {place: asked.count(place) for place in asked} == PLACES, done.stdout + done.stderr


NONE_RECORD = StateRecord(kind=RecordKind.INTENT, profile=Profile.NONE, key_version=1, generation=0, payload_bytes=4096)
KEYS = keys.derive(Secret(bytes(32)), "pvc-1", 1)
USES: dict[str, Callable[[], object]] = {
    "format": lambda: cryptsetup.luks_format(
        LocalRunner(), Profile.NONE, header=0, device="/dev/null", passphrase=Secret(b""), luks_uuid=""
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
