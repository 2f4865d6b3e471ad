"""A command line as people may see it: in an error that goes to a caller, and in the log.

It shows the tool, its verb and what it worked on. It does not show settings that are the same every time, tags, or option
lists behind `-o`: those of mount can hold credentials.
"""

from collections.abc import Iterator, Sequence
from typing import Final

HIDDEN: Final = "***"
_LEFT_OUT: Final = frozenset({"--config", "--addtag", "--deltag"})


def shown(argv: Sequence[str]) -> str:
    """One line for an error."""
    words = iter(argv)
    return " ".join(word for option in words for word in _shown(option, words))


def logged(argv: Sequence[str]) -> list[str]:
    """Every word for the log, in its place; the settings of LVM and option lists are only hinted at."""
    hidden = {"--config": "...", "-o": HIDDEN}
    return [hidden.get(before, word) for before, word in zip(("", *argv), argv, strict=False)]


def _shown(option: str, words: Iterator[str]) -> tuple[str, ...]:
    if option in _LEFT_OUT:
        next(words, None)
        return ()
    if option == "-o":
        return (option, HIDDEN) if next(words, None) is not None else (option,)
    return (option,)
