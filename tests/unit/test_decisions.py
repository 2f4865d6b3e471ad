"""Every decision has its date and says whether it stands, and the list of decisions says the same."""

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs/decisions"
PAGE = re.compile(
    r"# (?P<number>\d{4}): (?P<title>.+)\n\n(?P<date>\d{4}-\d{2}-\d{2}) · "
    r"(?:Accepted|Superseded by \[(?P<by>\d{4})\]\((?P=by)-[a-z0-9-]+\.md\))\n\n## "
)
ROW = re.compile(
    r"\| \[(?P<number>\d{4})\]\((?P<file>[a-z0-9-]+\.md)\) \| (?P<title>.+) \| (?P<date>\S+) \| "
    r"(?:Accepted|Superseded by (?P<by>\d{4})) \|"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a page's head, or its line in the list, says."""

    number: str
    title: str
    date: str
    by: str | None


def decision(match: re.Match[str] | None, where: str) -> Decision:
    assert match is not None, f"{where}: no title, date and standing as docs/decisions/README.md asks for"
    return Decision(number=match["number"], title=match["title"], date=match["date"], by=match["by"])


def pages() -> dict[str, Decision]:
    files = sorted(FOLDER.glob("[0-9]*.md"))
    return {path.name: decision(PAGE.match(path.read_text()), path.name) for path in files}


def listed() -> dict[str, Decision]:
    lines = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| [")]
    matches = [ROW.fullmatch(line) for line in lines]
    return {match["file"] if match else line: decision(match, line) for match, line in zip(matches, lines, strict=True)}


def test_every_page_has_a_number_of_its_own_a_real_date_and_a_standing() -> None:
    found = pages()
    assert [each.number for each in found.values()] == [f"{number:04}" for number in range(1, len(found) + 1)]
    assert all(name.startswith(f"{each.number}-") for name, each in found.items())
    for each in found.values():
        date.fromisoformat(each.date)


def test_the_list_says_what_the_pages_say() -> None:
    assert listed() == pages()


def test_a_decision_is_superseded_by_a_later_one_that_stands_or_fell_later() -> None:
    known = {each.number: each for each in pages().values()}
    for each in known.values():
        if each.by is not None:
            assert each.by in known
            assert each.by > each.number
            assert known[each.by].date >= each.date


@pytest.mark.parametrize(
    "head",
    [
        "# 0001: Title\n\n## Context",
        "# 0001: Title\n\n2026-11-24\n\n## Context",
        "# 0001: Title\n\n2026-11-24 · Perhaps\n\n## Context",
        "# 0001: Title\n\n2026-11-24 · Superseded by [0002](0003-x.md)\n\n## Context",
    ],
)
def test_a_page_without_date_or_standing_is_noticed(head: str) -> None:
    assert PAGE.match(head) is None
