"""What blkid prints of a device: a signature, or only what it knows of the device itself."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from csi.core import block_probe, filesystems
from csi.core.command import Result
from csi.core.errors import CommandError

_PARTITION = """DEVNAME=/dev/ubda1
PART_ENTRY_SCHEME={scheme}
PART_ENTRY_UUID=5a1e0001-01
PART_ENTRY_TYPE={type}
PART_ENTRY_NUMBER=1
PART_ENTRY_OFFSET=2048
PART_ENTRY_SIZE=131072
PART_ENTRY_DISK=98:0
"""


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("dos", "0x83"),
        ("dos", "0x8e"),
        ("gpt", "0fc63daf-8483-4772-8e79-3d69d8477de4"),
        ("gpt", "E6D6D379-F507-44C2-A23C-238F2A3DF928"),
        ("gpt", "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"),
    ],
)
def test_a_blank_partition_for_data_is_blank(scheme: str, kind: str) -> None:
    assert block_probe.found(_PARTITION.format(scheme=scheme, type=kind)) is None


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("dos", "0x5"),  # extended
        ("dos", "0xf"),  # extended, LBA
        ("dos", "0x85"),  # extended, Linux
        ("dos", "0x82"),  # swap
        ("dos", "0xef"),  # EFI
        ("dos", "0xfd"),  # Linux RAID
        ("gpt", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),  # EFI
        ("gpt", "21686148-6449-6e6f-744e-656564454649"),  # BIOS boot: code without any signature
        ("gpt", "a19d880f-05fc-4d3b-a006-743f0f84911e"),  # Linux RAID
        ("mac", "Apple_HFS"),
    ],
)
def test_a_blank_partition_that_is_meant_for_something_else_is_not_taken(scheme: str, kind: str) -> None:
    found = block_probe.found(_PARTITION.format(scheme=scheme, type=kind))
    assert found is not None
    assert f"partition type {kind}" in found
    assert "Linux LVM" in found


def test_a_partition_without_a_type_is_not_taken() -> None:
    text = "DEVNAME=/dev/sda1\nPART_ENTRY_SCHEME=atari\nPART_ENTRY_NUMBER=1\n"
    assert "partition type none" in (block_probe.found(text) or "")


@pytest.mark.parametrize("also", ["", _PARTITION.format(scheme="dos", type="0x83")])
def test_what_the_content_says_counts_before_what_the_table_says(also: str) -> None:
    assert block_probe.found(f"{also}UUID=1\nVERSION=1.0\nTYPE=ext4\nUSAGE=filesystem\nBLOCK_SIZE=4096\n") == "ext4"
    assert block_probe.found(f"{also}PTUUID=5a1e0001\nPTTYPE=dos\n") == "dos"


@pytest.mark.parametrize("line", ["LABEL=data", "UUID=1-2", "USAGE=other", "SBMAGIC=x", "SOMETHING_NEW=1"])
def test_any_other_word_stays_a_signature(line: str) -> None:
    text = _PARTITION.format(scheme="dos", type="0x83") + line + "\n"
    assert block_probe.found(text) == f"unknown signature ({line.partition('=')[0]})"


@pytest.mark.parametrize("text", ["", "DEVNAME=/dev/sda\n", "DEVNAME=/dev/sda\nBLOCK_SIZE=512\n"])
def test_a_device_of_which_only_itself_is_known_is_blank(text: str) -> None:
    assert block_probe.found(text) is None


class Blkid:
    """Answers as blkid does."""

    def __init__(self, returncode: int, stdout: str = "", stderr: str = "") -> None:
        self._result = Result(argv=(), returncode=returncode, stdout=stdout.encode(), stderr=stderr.encode())

    def run(self, argv: Any, *, ok: Collection[int], **_: Any) -> Result:
        if self._result.returncode not in ok:
            raise CommandError(argv, self._result.returncode, "", "")
        return self._result


@pytest.fixture
def device(tmp_path: Path) -> str:
    path = tmp_path / "device"
    path.touch()
    return str(path)


def test_a_result_that_is_ambivalent_is_content(device: str) -> None:
    assert filesystems.signature(Blkid(8, stderr="ambivalent result"), device) == "signatures of more than one kind"


def test_nothing_found_without_a_word_is_blank(device: str) -> None:
    assert filesystems.signature(Blkid(2), device) is None


@pytest.mark.parametrize("blkid", [Blkid(2, stderr="Input/output error"), Blkid(4), Blkid(1), Blkid(-9)])
def test_what_could_not_be_looked_at_is_never_blank(blkid: Blkid, device: str) -> None:
    with pytest.raises(CommandError):
        filesystems.signature(blkid, device)
