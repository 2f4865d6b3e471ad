"""What the real mkfs makes is not used yet, what was mounted is, and nobody else's filesystem is taken for the volume's."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from csi.core import filesystems
from csi.core.command import LocalRunner
from csi.core.filesystem import Filesystem
from csi.node.filesystem_use import was_used

OURS, OTHER = UUID(int=1), UUID(int=2)
SIZE = 400 << 20
OPTIONS = {
    Filesystem.EXT4: [(), ("-b", "1024"), ("-T", "largefile4")],
    Filesystem.XFS: [(), ("-i", "size=1024"), ("-b", "size=1024")],
}
MADE = [(fstype, options) for fstype, several in OPTIONS.items() for options in several]
_LOG_BEGINS = b"\xfe\xed\xba\xbe"


@pytest.fixture(autouse=True)
def _needs() -> None:
    missing = [tool for tool in ("mkfs.ext4", "mkfs.xfs") if shutil.which(tool, path="/usr/sbin:/sbin") is None]
    if missing and os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
        pytest.fail(f"no {missing}")
    if missing:
        pytest.skip(f"no {missing}")


class Device:
    def __init__(self, path: Path, fstype: Filesystem, options: tuple[str, ...]) -> None:
        self.path = path
        path.touch()
        os.truncate(path, SIZE)
        filesystems.make(LocalRunner(), str(path), fstype, options, OURS)

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def write(self, offset: int, what: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(what)

    def mount_once(self, fstype: Filesystem) -> None:
        """What a mount and its end leave behind: ext4's time of the mount; in xfs's log another record."""
        if fstype is Filesystem.EXT4:
            self.write(1024 + 0x2C, b"\x01")
        else:
            self.write(self._second_record, _LOG_BEGINS)

    @property
    def _second_record(self) -> int:
        with self.path.open("rb") as file:
            return file.read().index(_LOG_BEGINS) + 1024


@pytest.fixture
def make(tmp_path: Path) -> Callable[[Filesystem, tuple[str, ...]], Device]:
    return lambda fstype, options: Device(tmp_path / "device", fstype, options)


@pytest.mark.parametrize(("fstype", "options"), MADE)
def test_a_filesystem_that_was_made_is_unused_until_it_is_mounted(
    make: Callable[[Filesystem, tuple[str, ...]], Device], fstype: Filesystem, options: tuple[str, ...]
) -> None:
    device = make(fstype, options)
    assert not was_used(device.read, OURS)
    device.mount_once(fstype)
    assert was_used(device.read, OURS)
    assert not was_used(device.read, OTHER), "a leftover of another volume is taken for this one's"


@pytest.mark.parametrize("fstype", Filesystem)
def test_what_is_cut_short_or_blank_is_not_a_used_filesystem(
    make: Callable[[Filesystem, tuple[str, ...]], Device], fstype: Filesystem
) -> None:
    device = make(fstype, ())
    assert not was_used(lambda offset, length: device.read(offset, min(length, 512)), OURS)
    device.write(0, bytes(1 << 20))
    assert not was_used(device.read, OURS)
