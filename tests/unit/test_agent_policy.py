"""`guest agent-policy`: the entry is the one that the agent's rules were seen to take, and nothing else changes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from csi.core.errors import InvalidInput
from csi.guest import main
from csi.guest.agent_policy import DirectVolume, with_volume

RULES = (
    'package agent_policy\n\n# policy_data := in a comment\ndefault CreateContainerRequest := false\nx := "é\\u0001"\n'
)
SHARED = {"destination": "/data", "type_": "bind", "source": "$(sfprefix)data$", "options": ["rbind", "rprivate", "rw"]}
PROC = {"destination": "/proc", "type_": "proc", "source": "proc", "options": ["nosuid"]}
SCRATCH: dict[str, Any] = {"driver": "local", "source": "local", "fstype": "local", "mount_point": "^$(cpath)/x$"}
NAME = "io.kubernetes.cri.container-name"
DIRECT = {"destination": "/data", "type_": "bind", "source": "", "options": ["rbind", "rprivate", "rw"]}
STORAGE: dict[str, Any] = {
    "driver": "",
    "driver_options": [],
    "source": "",
    "fstype": "ext4",
    "options": [],
    "mount_point": "$(spath)/$(b64_device_id)",
    "fs_group": None,
    "shared": False,
}
"""Mount and storage as they were seen to be accepted, under virtio-blk and virtio-scsi."""


def container(name: str, *mounts: dict[str, Any]) -> dict[str, Any]:
    return {"OCI": {"Annotations": {NAME: name}, "Mounts": [PROC, *mounts]}, "storages": [SCRATCH], "exec": []}


def document(*containers: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy({"containers": list(containers), "common": {"spath": "/run/x", "n": 2**40, "text": "é\u0001"}})


def policy(data: object) -> str:
    return f"{RULES}\npolicy_data := {json.dumps(data, indent=2)}"


def taken_apart(text: str) -> tuple[str, Any]:
    rules, _, data = text.rpartition("\npolicy_data := ")
    return rules, json.loads(data)


@pytest.mark.parametrize("sealed", [False, True])
def test_the_entry_is_the_accepted_one_and_nothing_else_changes(sealed: bool) -> None:
    before = document(container("pause"), container("main", SHARED))
    rules, after = taken_apart(with_volume(policy(before), DirectVolume(mount_path="/data", sealed=sealed), "p"))
    options = ["encryption_key=ephemeral", "create_filesystem"] if sealed else []
    expected = document(container("pause"), container("main", DIRECT))
    expected["containers"][1]["storages"].append({**STORAGE, "driver_options": options})
    assert after == expected
    assert rules == RULES


def test_only_the_named_container_and_the_given_filesystem() -> None:
    before = document(container("main", SHARED), container("side", SHARED))
    volume = DirectVolume(mount_path="/data", container="side", fstype="xfs")
    _, after = taken_apart(with_volume(policy(before), volume, "p"))
    assert after["containers"][0] == before["containers"][0]
    assert after["containers"][1]["storages"][1] == {**STORAGE, "fstype": "xfs"}
    _, both = taken_apart(with_volume(policy(before), DirectVolume(mount_path="/data"), "p"))
    assert [len(one["storages"]) for one in both["containers"]] == [2, 2]


def test_a_second_volume_is_added_to_the_first() -> None:
    logs = {**SHARED, "destination": "/logs", "source": "$(sfprefix)logs$"}
    text = with_volume(policy(document(container("main", SHARED, logs))), DirectVolume(mount_path="/data"), "p")
    _, after = taken_apart(with_volume(text, DirectVolume(mount_path="/logs"), "p"))
    assert after["containers"][0]["storages"] == [SCRATCH, STORAGE, STORAGE]


READ_ONLY = {**SHARED, "options": ["rbind", "rprivate", "ro"]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("package x\n", "holds no policy_data"),
        (f"{RULES}\npolicy_data := {{", "is not JSON"),
        (f'{RULES}\npolicy_data := {{"containers": [], "containers": []}}', "there twice"),
        (f"{RULES}\npolicy_data := []", "no object"),
        (f"{RULES}\npolicy_data := {'[' * 100_000}", "is not JSON"),
        (policy({}), "no list containers"),
        (policy({"containers": [{"OCI": {}}]}), "no list Mounts"),
        (policy({"containers": [{"OCI": 3}]}), "no list Mounts"),
        (policy({"containers": [3]}), "no list containers"),
        (policy(document(container("main", READ_ONLY))), "read-only"),
        (policy(document(container("main", SHARED, SHARED))), "not a claim's"),
        (policy(document(container("main", DIRECT))), "no claim is mounted at /data; it could be: nowhere"),
        (
            policy(document(container("main", {**SHARED, "destination": "/other"}))),
            "no claim is mounted at /data; it could be: /other",
        ),
    ],
)
def test_what_can_not_be_is_told(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        with_volume(text, DirectVolume(mount_path="/data"), "policy.rego")


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.rego"
    file.write_text(policy(document(container("main", SHARED))))
    words = ["agent-policy", "--policy", str(file), "--mount", "/data"]
    assert main.main([*words, "--container", "main", "--fstype", "xfs", "--sealed"]) == 0
    volume = DirectVolume(mount_path="/data", fstype="xfs", sealed=True, container="main")
    assert capsys.readouterr().out == with_volume(file.read_text(), volume, "p")
    assert main.main([*words, "--container", "other"]) == 2
    assert "of container other" in capsys.readouterr().err
