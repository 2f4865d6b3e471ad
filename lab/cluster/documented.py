"""Commands as a page of docs/ writes them, so that what a person is told is what is run."""

import re


def commands(page: str, heading: str) -> list[str]:
    """The commands of the first console block below a heading, each in one line, without what they answer."""
    _, found, below = page.partition(f"\n{heading}\n")
    block = re.search(r"```console\n(.*?)```", below, re.DOTALL)
    if not found or block is None:
        raise ValueError(f"the page has no console block below {heading!r}")
    whole = re.sub(r"\\\n\s*", "", block[1])
    return [line.removeprefix("$ ") for line in whole.splitlines() if line.startswith("$ ")]
