"""A damaged disk of a group that no pool means, as the real LVM reports it: what is whole must still be seen and served.

Scenarios run as those of `test_lvm_devices` do: each in a process of its own, with loop devices in a /dev of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tools import test_lvm_devices as lab
from tests.tools.test_lvm_devices import minors  # noqa: F401 - a fixture

_TEXT_BEGINS = 4096 + 512
"""LVM's metadata area follows the first 4 KiB of a disk, and its text the 512 bytes of the area's own header."""


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    reason = lab._why_not()
    if reason is not None and os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


def _damage(disk: str) -> None:
    """Change four bytes in every copy of the metadata text that the disk holds."""
    with Path(disk).open("r+b") as file:
        area = file.read(1 << 20)
        at = area.find(b"extent_size", _TEXT_BEGINS)
        assert at > 0
        while at > 0:
            file.seek(at)
            file.write(b"\x00\x01\x02\x03")
            at = area.find(b"extent_size", at + 1)


def damaged_foreign_group(minors: list[int]) -> dict[str, Any]:  # noqa: F811 - given by `inside`
    own, foreign = lab._node(minors[0], "/dev/sda"), lab._node(minors[1], "/dev/sdb")
    lab._group("own", own)
    lab._group("foreign", foreign)
    _damage(foreign)
    lvm = lab._lvm()
    made = lab._try(lambda: lvm.create("own", "volume", extents=1, tags=("a-tag",)))
    seen = {vg.name: [lv.name for lv in vg.lvs] for vg in lvm.report().vgs}
    removed = lab._try(lambda: lvm.remove("own", "volume"))
    return {"made": made, "seen": seen, "removed": removed, "left": lab._groups()}


def test_damaged_metadata_of_a_foreign_group_hides_nothing_of_ours(minors: list[int]) -> None:  # noqa: F811
    argv = ["unshare", "--mount", sys.executable, "-m", "tests.tools.test_lvm_damage", damaged_foreign_group.__name__]
    done = subprocess.run([*argv, json.dumps(minors)], capture_output=True, text=True, cwd=lab.ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["made"] == seen["removed"] == "done"
    assert seen["seen"]["own"] == ["volume"]
    assert "own" in seen["left"]


if __name__ == "__main__":
    lab._own_places()
    print(json.dumps(globals()[sys.argv[1]](json.loads(sys.argv[2]))))
