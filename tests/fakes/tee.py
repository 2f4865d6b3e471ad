"""A guest's kernel files about its TEE: the lab's stand-in of configfs-tsm, mounted below a folder of the test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi.kbs import init_data

needs_fuse = pytest.mark.skipif(
    not os.environ.get("SEALED_LOCAL_REQUIRE_LAB")
    and (os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK)),
    reason="mounting a tree by FUSE needs root and /dev/fuse",
)


def digest(text: str, size: int) -> bytes:
    """What a TEE's register of `size` bytes holds for a guest that was started with this init-data."""
    return bytes.fromhex(init_data.parse(text).digest.partition(":")[2])[:size].ljust(size, b"\0")


@contextmanager
def tee(root: Path, chip: Mapping[str, object]) -> Iterator[Path]:
    """The root folder of a guest on this chip; `root` is made."""
    mounted, description = root / "sys/kernel/config", root / "chip.json"
    mounted.mkdir(parents=True)
    (root / "dev").mkdir()
    (root / "dev/tdx_guest").symlink_to(mounted / "tdx_guest")
    description.write_text(json.dumps(chip))
    subprocess.run([sys.executable, "-m", "lab.tee", str(description), str(mounted)], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
