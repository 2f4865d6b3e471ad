"""`tidy_cache.py CACHE`: removes images of the lab that changes of the project left behind, but for the last of each stage.

An image lies under the digest of all that went into it, so each change makes another one, of up to a gigabyte.
"""

import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.alone import alone

KEPT = 3
"""Of a stage: other checkouts may share the cache."""
_IMAGE = re.compile(r"(.+)-[0-9a-f]{16}(\.unfinished)?")


def left_behind(folder: Path) -> list[Path]:
    """What nobody builds at this moment, as the caller holds the folder, and nobody needs any more."""
    found: dict[str, list[Path]] = defaultdict(list)
    old = []
    for path in folder.iterdir():
        match = _IMAGE.fullmatch(path.name)
        if match is not None and match[2]:
            old.append(path)
        elif match is not None:
            found[match[1]].append(path)
    for paths in found.values():
        # The time of the last change of the folder's entry: its own time is that of the image below it.
        old += sorted(paths, key=lambda path: (path.stat().st_ctime_ns, path.name))[:-KEPT]
    return old


def main(cache: Path) -> None:
    """Remove them."""
    images = cache / "images"
    if not images.is_dir():
        return
    with alone(images):
        for path in left_behind(images):
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
