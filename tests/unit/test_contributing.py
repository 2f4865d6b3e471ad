"""The stranger's table: every file that docs/contributing.md names for a change is there, and the kinds are many."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/contributing.md").read_text()
NAMED = re.compile(r"`((?:csi|lab|tests|docs|scripts|protos|requirements)(?:/[\w.-]+)*|[A-Z]\w+|pyproject\.toml)`")


def rows() -> dict[str, list[str]]:
    """Each kind of change with the files that its row names."""
    table = PAGE.partition("<!-- changes -->")[2].partition("<!-- end of changes -->")[0]
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "| files |" not in line]
    return {cells[0].removeprefix("| "): NAMED.findall(cells[1]) for cells in lines}


def is_there(name: str, root: Path = ROOT) -> bool:
    """Whether there is such a file or folder; a name without an ending may be a module, whichever of the two it is."""
    return (root / name).exists() or (root / f"{name}.py").is_file()


def test_at_least_fifteen_kinds_of_change_are_told_of() -> None:
    assert len(rows()) >= 15


@pytest.mark.parametrize("kind", rows())
def test_every_kind_of_change_names_files_that_exist(kind: str) -> None:
    named = rows()[kind]
    assert named, "names no file"
    assert [name for name in named if not is_there(name)] == []


def test_every_other_file_that_the_page_names_exists() -> None:
    assert [name for name in NAMED.findall(PAGE) if not is_there(name)] == []


def test_the_page_explains_every_wing() -> None:
    wings = {f"csi/{path.name}" for path in (ROOT / "csi").iterdir() if (path / "__init__.py").is_file()} | {"lab"}
    assert set(NAMED.findall(PAGE.partition("**Which code can touch")[0])) >= wings


def test_a_file_that_is_gone_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "csi").mkdir()
    (tmp_path / "csi/a.py").touch()
    assert [is_there(name, tmp_path) for name in ("csi", "csi/a.py", "csi/a", "csi/b.py", "csi/b")] == [
        True, True, True, False, False,
    ]  # fmt: skip
