"""What the table of filesystems says holds for the real tools, where this machine has them."""

import shutil
import subprocess
from pathlib import Path

import pytest

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
