"""Writes the tables of options in the documentation anew, from where the options are declared: `make tables`.

A page holds the table between `<!-- options: PROGRAM -->`, or `PROGRAM VERB`, and `<!-- end of options -->`; whatever is
between is replaced.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from csi.cluster import settings as cluster_settings  # noqa: E402
from csi.core import options  # noqa: E402
from csi.guest import command_line as guest_line  # noqa: E402
from csi.node import settings as node_settings  # noqa: E402

PAGES = ("docs/node.md", "docs/guest.md", "docs/cluster.md")
_MARKED = re.compile(r"(<!-- options: ([\w -]+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def guest_verbs() -> dict[str, argparse.ArgumentParser]:
    """The command line of each verb of the guest."""
    (verbs,) = (action.choices for action in guest_line.parser()._actions if action.dest == "verb")  # noqa: SLF001
    return dict(verbs)  # type: ignore[call-overload]


def guest_table(verb: argparse.ArgumentParser) -> str:
    """The options of a verb as a table in Markdown."""
    rows = ["| option | meaning |", "|---|---|"]
    for option in verb._actions:  # noqa: SLF001
        if option.option_strings and option.dest != "help":
            word = "" if option.nargs == 0 else f" {option.metavar or option.dest.upper()}"
            rows.append(f"| `{option.option_strings[0]}{word}` | {guest_line.meaning(option)} |")
    return "\n".join(rows) + "\n"


TABLES = {"node": options.table(node_settings.OPTIONS), "cluster": options.table(cluster_settings.OPTIONS)} | {
    f"guest {name}": guest_table(verb) for name, verb in guest_verbs().items()
}


def written(text: str) -> str:
    """A page with its tables as they should be. Raises `KeyError` for a program whose options are declared elsewhere."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]}\n{found[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(written(path.read_text()))
