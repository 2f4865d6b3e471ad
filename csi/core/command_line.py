"""A command line as people may see it: in an error that goes to a caller, and in the log.

It shows the tool, its verb and what it worked on. It does not show settings that are the same every time, tags, or option
lists behind `-o`, as those of mount can hold credentials; LVM's are lists of columns and stay.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

HIDDEN: Final = "***"
_LEFT_OUT: Final = frozenset({"--config", "--addtag", "--deltag"})


def shown(argv: Sequence[str]) -> str:
    """One line for an error."""
    hides = not _is_lvm(argv)
    words = iter(argv)
    return " ".join(word for option in words for word in _shown(option, words, hides))


def logged(argv: Sequence[str]) -> list[str]:
    """Every word for the log, in its place; the settings of LVM and option lists are only hinted at."""
    hidden = {"--config": "..."} if _is_lvm(argv) else {"--config": "...", "-o": HIDDEN}
    return [hidden.get(before, word) for before, word in zip(("", *argv), argv, strict=False)]


def _is_lvm(argv: Sequence[str]) -> bool:
    """Whether LVM is what is run, whatever stands before it; a word behind an option is no program."""
    return "lvm" in itertools.takewhile(lambda word: word != "-o", argv)


def _shown(option: str, words: Iterator[str], hides: bool) -> tuple[str, ...]:
    if option in _LEFT_OUT:
        next(words, None)
        return ()
    if option == "-o" and hides:
        return (option, HIDDEN) if next(words, None) is not None else (option,)
    return (option,)
