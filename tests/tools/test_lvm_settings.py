"""The host's own LVM settings, as the real LVM reads them: whatever they say, the driver sees and does the same.


Scenarios run as those of `test_lvm_devices` do: each in a process of its own, with loop devices in a /dev of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from csi.core.errors import SealedLocalError
from tests.tools import test_lvm_devices as lab
from tests.tools.test_lvm_devices import minors  # noqa: F401 - a fixture

HOSTILE = (
    'report { list_item_separator=";" }',
    "report { binary_values_as_numeric=1 }",
    "report { prefixes=1 }",
    "report { compact_output=1 }",
    'report { compact_output_cols="lv_tags,vg_name,pv_name" }',
    'report { output_format="json_std" }',
    "report { headings=0 buffered=0 aligned=0 columns_as_rows=1 quoted=0 }",
    'report { separator="," time_format="%A" mark_hidden_devices=0 }',
    "log { report_command_log=1 }",
    "log { verbose=3 silent=1 command_names=1 indent=1 }",
    'global { units="h" suffix=1 si_unit_consistency=0 }',
    "global { test=1 }",
    "global { metadata_read_only=1 }",
    'global { system_id_source="uname" }',
    "global { locking_type=4 }",
    'devices { global_filter=["r|.*|"] filter=["r|.*|"] }',
    "devices { use_devicesfile=1 }",
    "devices { scan=[] }",
    'activation { volume_list=[] read_only_volume_list=["vg0"] auto_activation_volume_list=[] }',
    'allocation { cling_tag_list=["@a"] maximise_cling=0 }',
    "metadata { record_lvs_history=1 pvmetadataignore=1 }",
    "tags { hosttags=1 }",
    "this is { no configuration",
)


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    reason = lab._why_not()
    if reason is not None and os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


def _life() -> dict[str, Any]:
    """A volume is made, seen, marked, and removed; and the group's metadata is read by LVM without the host's settings."""
    lvm = lab._lvm()
    lvm.create("vg0", "volume", extents=3, tags=("sl:v1", "sl:state=ready"))
    seen = lvm.report()
    lvm.change_tags("vg0", "volume", remove=("sl:state=ready",), add=("sl:state=deleting",))
    marked = [sorted(lv.tags) for lv in lvm.report().lvs]
    lvm.remove("vg0", "volume")
    (vg,) = seen.vgs
    return {
        "group": [vg.name, vg.extents, vg.free_extents, vg.missing_disks, vg.usable_free_extents, vg.writable],
        "volumes": [[lv.name, lv.size_bytes, sorted(lv.tags)] for lv in seen.lvs],
        "marked": marked,
        "left": [lv.name for lv in lvm.report().lvs],
    }


def hostile_settings(minors: list[int]) -> dict[str, Any]:  # noqa: F811 - given by `inside`
    lab._group("vg0", lab._node(minors[0], "/dev/sda"))
    seen = {}
    for line in ("", *HOSTILE):
        Path("/etc/lvm/lvm.conf").write_text(line)
        try:
            seen[line] = json.dumps(_life())
        except SealedLocalError as error:
            seen[line] = str(error)
    return seen


def test_no_setting_of_the_host_changes_what_is_seen_or_done(minors: list[int]) -> None:  # noqa: F811
    argv = ["unshare", "--mount", sys.executable, "-m", "tests.tools.test_lvm_settings", hostile_settings.__name__]
    done = subprocess.run([*argv, json.dumps(minors)], capture_output=True, text=True, cwd=lab.ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    right = seen.pop("")
    assert json.loads(right) == {
        "group": ["vg0", 15, 12, 0, 12, True],
        "volumes": [["volume", 12 << 20, ["sl:state=ready", "sl:v1"]]],
        "marked": [["sl:state=deleting", "sl:v1"]],
        "left": [],
    }
    assert {line: said for line, said in seen.items() if said != right} == {}


if __name__ == "__main__":
    lab._own_places()
    print(json.dumps(globals()[sys.argv[1]](json.loads(sys.argv[2]))))
