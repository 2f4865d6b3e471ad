"""Commands as a page of docs/ writes them, so that what a person is told is what is run."""

import re


def commands(page: str, heading: str) -> list[str]:
    """The commands of the first console block below a heading, each in one line, without what they answer."""
    whole = re.sub(r"\\\n\s*", "", block(page, heading, "console"))
    return [line.removeprefix("$ ") for line in whole.splitlines() if line.startswith("$ ")]


def block(page: str, heading: str, language: str) -> str:
    """Text of the first block in a language below a heading. Raises ValueError where there is none."""
    _, found, below = page.partition(f"\n{heading}\n")
    block = re.search(rf"```{language}\n(.*?)```", below, re.DOTALL)
    if not found or block is None:
        raise ValueError(f"the page has no {language} block below {heading!r}")
    return block[1]
