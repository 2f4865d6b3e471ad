"""The mount that a path lies in, from the kernel's text."""

import os
from pathlib import Path

import pytest

from csi.node import held_mount

TEXT = """22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 22 0:25 / /run rw shared:5 - tmpfs tmpfs rw
40 22 8:1 /var/lib/kubelet /var/lib/kubelet rw shared:1 - ext4 /dev/sda1 rw
41 22 0:40 / /received rw master:7 - tmpfs a\\040b rw
42 22 0:41 / /both rw shared:9 master:7 propagate_from:2 unbindable - tmpfs none rw
43 22 0:42 / /alone rw - overlay overlay rw,lowerdir=/shared:3
"""


@pytest.mark.parametrize(
    ("identity", "shared", "master", "fstype"),
    [(22, 1, None, "ext4"), (41, None, 7, "tmpfs"), (42, 9, 7, "tmpfs"), (43, None, None, "overlay")],
)
def test_a_mount_tells_whom_it_shares_with(identity: int, shared: int | None, master: int | None, fstype: str) -> None:
    found = held_mount.find(TEXT, identity)
    assert (found.shared, found.master, found.fstype) == (shared, master, fstype)


def test_root_and_target_are_told() -> None:
    found = held_mount.find(TEXT, 40)
    assert (found.root, found.target) == ("/var/lib/kubelet", "/var/lib/kubelet")


def test_a_mount_that_is_gone_is_no_other_one() -> None:
    with pytest.raises(LookupError, match="no mount has the number 4"):
        held_mount.find(TEXT, 4)


def test_the_groups_of_a_whole_namespace() -> None:
    assert held_mount.peer_groups(TEXT) == {1, 5, 9}


def test_the_kernels_own_text_is_read(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines())
    os.close(descriptor)
    found = held_mount.find(Path("/proc/self/mountinfo").read_text(), int(fields["mnt_id"]))
    assert str(tmp_path).startswith(found.target)
