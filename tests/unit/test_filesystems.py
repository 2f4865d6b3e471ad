"""A disk that answers mkfs, fsck or blkid with errors is named as what it is; it is no fault of the tool."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from csi.core import filesystems
from csi.core.command import Result
from csi.core.errors import CommandError, DiskFailed
from csi.core.filesystem import Filesystem


class Tool:
    """A runner whose every command ends badly with these words."""

    def __init__(self, said: str) -> None:
        self._said = said

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        raise CommandError(argv, 1, "", self._said)


CALLS: dict[str, Callable[[Tool, str], object]] = {
    "mkfs.ext4": lambda tool, device: filesystems.make(tool, device, Filesystem.EXT4),
    "mkfs.xfs": lambda tool, device: filesystems.make(tool, device, Filesystem.XFS),
    "e2fsck": lambda tool, device: filesystems.check(tool, device, Filesystem.EXT4),
    "blkid": filesystems.signature,
}


@pytest.mark.parametrize("tool", CALLS)
def test_an_error_of_the_disk_is_named_with_disk_and_remedy(tool: str, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.touch()
    with pytest.raises(DiskFailed, match=rf"{device} can't be read or written by {tool}: .* look at .* the disk"):
        CALLS[tool](Tool("Warning: could not read block 0: Input/output error"), str(device))


@pytest.mark.parametrize("tool", CALLS)
def test_what_is_no_error_of_the_disk_stays_the_tools(tool: str, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.touch()
    with pytest.raises(CommandError, match="No such option"):
        CALLS[tool](Tool("No such option"), str(device))
