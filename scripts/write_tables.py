"""Writes the tables of options in the documentation anew, from where the options are declared: `make tables`.

A page holds the table between `<!-- options: PROGRAM -->` and `<!-- end of options -->`; whatever is between is replaced.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from csi.core import options  # noqa: E402
from csi.node import settings as node_settings  # noqa: E402

PROGRAMS = {"node": node_settings.OPTIONS}
PAGES = ("docs/node.md",)
_MARKED = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def written(text: str) -> str:
    """A page with its tables as they should be. Raises `KeyError` for a program whose options are declared elsewhere."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{options.table(PROGRAMS[found[2]])}\n{found[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(written(path.read_text()))
