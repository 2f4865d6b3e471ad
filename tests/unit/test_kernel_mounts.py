"""The kernel's list of mounts is read whatever names people give to directories."""

import os
from pathlib import Path

import pytest

from csi.core import kernel_mounts, mounts

GOOD = "36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw\n"
NOT_ESCAPED = ["\x0b", "\x0c", "\r", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("character", NOT_ESCAPED, ids=ascii)
def test_a_character_that_python_takes_for_a_line_end_is_part_of_the_name(tmp_path: Path, character: str) -> None:
    text = f"{GOOD}37 35 0:50 / /data/a{character}b rw - fuse.sshfs u@h:/{character} rw\n"
    parsed = kernel_mounts.parse(text)
    assert [mount.target for mount in parsed] == ["/mnt", f"/data/a{character}b"]
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(text.encode())
    assert mounts.listed(mountinfo) == parsed


@pytest.mark.parametrize("name", ["a b", "a\tb", "a\nb", "a\\b", "\u00e4 b"])
def test_what_the_kernel_escapes_is_read_back(name: str) -> None:
    escaped = "".join(f"\\{ord(letter):03o}" if letter in " \t\n\\" else letter for letter in name)
    (mount,) = kernel_mounts.parse(f"37 35 0:50 / /{escaped} rw - tmpfs none rw\n")
    assert mount.target == f"/{name}"


@pytest.mark.parametrize("name", [b"m\xfcll", b"m\xfcll \xc3\xbc", b"\xff\t\xfe"])
def test_a_name_that_is_not_utf_8_leads_to_its_directory(tmp_path: Path, name: bytes) -> None:
    escaped = name.replace(b" ", b"\\040").replace(b"\t", b"\\011")
    (tmp_path / "mountinfo").write_bytes(b"37 35 0:50 / /mnt/" + escaped + b" rw - tmpfs none rw\n")
    (mount,) = mounts.listed(tmp_path / "mountinfo")
    assert os.fsencode(mount.target) == b"/mnt/" + name
