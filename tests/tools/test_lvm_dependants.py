"""Somebody's snapshot of a volume, as the real LVM keeps it: the driver sees it, and its lvremove takes neither away, even
when the snapshot was made after the look.

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

_SNAPSHOT = """
        snapshot0 {
            id = "aMj7Tf-9JgN-Q2IA-gD4N-1sgl-Vjd3-b2Pc0H"
            status = ["READ", "WRITE", "VISIBLE"]
            segment_count = 1
            segment1 {
                start_extent = 0
                extent_count = 1
                type = "snapshot"
                chunk_size = 8
                origin = "volume"
                cow_store = "backup"
            }
        }
"""


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    reason = lab._why_not()
    if reason is not None and os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


def _make_snapshot() -> None:
    """What `lvcreate --snapshot` leaves in the metadata; LVM itself needs a kernel with device-mapper for it."""
    lvm = lab._lvm()
    lvm.create("vg0", "backup", extents=1, tags=())
    lvm._change("vg0", ["vgcfgbackup", "--file", "/run/text", "vg0"])
    text = Path("/run/text").read_text()
    end = text.rindex("}", 0, text.rindex("}"))
    Path("/run/text").write_text(text[:end] + _SNAPSHOT + text[end:])
    lvm._change("vg0", ["vgcfgrestore", "--file", "/run/text", "vg0"])


def snapshot(minors: list[int]) -> dict[str, Any]:  # noqa: F811 - given by the test
    lab._group("vg0", lab._node(minors[0], "/dev/sda"))
    lvm = lab._lvm()
    lvm.create("vg0", "volume", extents=1, tags=())
    _make_snapshot()
    seen = {lv.name: [lv.origin, lv.is_origin, lv.is_locked] for lv in lvm.report().lvs}
    refused = lab._try(lambda: lvm.remove("vg0", "volume"))
    left = sorted(lv.name for lv in lab._lvm().report().lvs)
    lvm.remove("vg0", "backup")
    afterwards = lab._try(lambda: lvm.remove("vg0", "volume"))
    return {
        "seen": seen, "refused": refused, "left": left, "afterwards": afterwards, "end": len(lab._lvm().report().lvs)
    }  # fmt: skip


def test_a_volume_with_a_snapshot_is_not_removed_and_the_snapshot_neither(minors: list[int]) -> None:  # noqa: F811
    argv = ["unshare", "--mount", sys.executable, "-m", "tests.tools.test_lvm_dependants", snapshot.__name__]
    done = subprocess.run([*argv, json.dumps(minors)], capture_output=True, text=True, cwd=lab.ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seen"] == {"volume": ["", True, False], "backup": ["volume", False, False]}
    assert found["refused"].startswith("InUse: vg0/volume has a snapshot")
    assert found["left"] == ["backup", "volume"]
    assert (found["afterwards"], found["end"]) == ("done", 0)


if __name__ == "__main__":
    lab._own_places()
    print(json.dumps(globals()[sys.argv[1]](json.loads(sys.argv[2]))))
