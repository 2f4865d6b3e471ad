"""What the table of filesystems says holds for the real tools, where this machine has them."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from csi.core import filesystems
from csi.core.errors import CommandError, InUse
from csi.core.filesystem import Filesystem, traits


@pytest.mark.parametrize("filesystem", Filesystem)
def test_the_smallest_size_is_one_that_its_tool_makes_whole(tmp_path: Path, filesystem: Filesystem) -> None:
    found = traits(filesystem)
    if shutil.which(found.make[0]) is None:
        pytest.skip(f"{found.make[0]} is not on this machine")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(found.smallest_bytes)
    done = subprocess.run([*found.make, image], capture_output=True, text=True)
    # mke2fs that has no room for a journal says so, and ends well.
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "", "")


@pytest.mark.parametrize("filesystem", Filesystem)
def test_one_block_less_is_refused_or_left_without_a_journal(tmp_path: Path, filesystem: Filesystem) -> None:
    found = traits(filesystem)
    if shutil.which(found.make[0]) is None:
        pytest.skip(f"{found.make[0]} is not on this machine")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(found.smallest_bytes - 4096)
    done = subprocess.run([*found.make, image], capture_output=True, text=True)
    assert done.returncode != 0 or "too small for a journal" in done.stdout + done.stderr


@pytest.mark.parametrize(("said", "kind"), [("/dev/x is in use.", InUse), ("Superblock invalid", CommandError)])
def test_a_check_that_could_not_look_is_not_taken_for_damage(said: str, kind: type[Exception]) -> None:
    """e2fsck ends with status 8 for both."""

    class Tool:
        def run(self, argv: Sequence[str], **_: object) -> None:
            raise CommandError(argv, 8, "", f"{said}\ne2fsck: Cannot continue, aborting.")

    runner: Any = Tool()
    with pytest.raises(kind):
        filesystems.check(runner, "/dev/x", Filesystem.EXT4)
