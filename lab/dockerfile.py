"""Reads a Dockerfile: its stages, what each starts from, its instructions in order. Shared by the linter and the lab."""

import re
from dataclasses import dataclass, field


@dataclass
class Stage:
    """One stage of a Dockerfile: what it starts from, and its instructions in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile, arguments before the first FROM put in."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    found: list[Stage] = []
    given: dict[str, str] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        instruction, rest = word.upper(), rest.strip()
        if instruction == "ARG" and not found:
            name, _, value = rest.partition("=")
            given[name] = value.strip('"')
        elif instruction == "FROM":
            words = [part for part in rest.split() if not part.startswith("--")]
            base = re.sub(r"\$\{?(\w+)\}?", lambda match: given.get(match[1], ""), words[0])
            found.append(Stage(words[2] if len(words) == 3 else str(len(found)), base))
        elif found:
            found[-1].instructions.append((instruction, rest))
    return found
