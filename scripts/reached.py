"""Leaves of an installed package `csi` what one program's imports reach: `reached.py FOLDER PROGRAM`, FOLDER holding `csi`.

Used where an image is made: by the Dockerfile and by the lab's guest. Imports are read, not carried out, so those inside
functions count as well. It needs the standard library only, and knows nothing of what a program should or shouldn't have:
the import contracts in pyproject.toml do.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "csi"
PYTHONS = (".py", ".pyi", ".pyc", ".typed")
"""Sources, stubs, byte code, and the mark for type checkers."""


def roots(program: str) -> tuple[str, str]:
    """Where the imports of a program begin. `csi.__main__` imports `csi.PROGRAM.main` by a string, so both are named."""
    return f"{PACKAGE}.__main__", f"{PACKAGE}.{program}.main"


def reached(folder: Path, program: str) -> set[Path]:
    """The files below `folder` that the program's imports reach. Raises `ValueError` when there is no such program."""
    modules: dict[str, Path] = {}
    waiting = list(roots(program))
    while waiting:
        name = waiting.pop()
        file = _file(folder, name)
        if name in modules or file is None:
            continue
        modules[name] = file
        waiting += [name.rpartition(".")[0], *_imported(file, name)]
    missing = [name for name in roots(program) if name not in modules]
    if missing:
        raise ValueError(f"{folder} holds no module {missing[0]}")
    return set(modules.values())


def data_of(folder: Path, modules: set[Path]) -> set[Path]:
    """Files that are not Python's and lie in a package that is reached: its code reads them by the package's name."""
    packages = {path.parent for path in modules if path.name == "__init__.py"}
    return {
        path
        for path in (folder / PACKAGE).rglob("*")
        if path.is_file()
        and path.suffix not in PYTHONS
        and next(place for place in path.parents if (place / "__init__.py").is_file()) in packages
    }


def prune(folder: Path, program: str) -> str:
    """Remove what the program doesn't reach, byte code and type stubs included; returns one line with the counts."""
    kept = reached(folder, program)
    stay = kept | data_of(folder, kept)
    gone = [path for path in (folder / PACKAGE).rglob("*") if path.is_file() and path not in stay]
    sources = [path for path in gone if path.suffix == ".py"]
    lines_gone = sum(map(_lines, sources))
    for path in gone:
        path.unlink()
    for place in sorted((folder / PACKAGE).rglob("*"), reverse=True):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    return (
        f"{program}: {len(kept)} files with {sum(map(_lines, kept))} lines are reached; "
        f"{len(sources)} with {lines_gone} lines were not and are removed"
    )


def _file(folder: Path, module: str) -> Path | None:
    """The file of a module of the package; None for whatever else an import may name."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    place = folder.joinpath(*parts)
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)


def _imported(file: Path, module: str) -> Iterator[str]:
    """Names that a file imports, anywhere in it. `from a import b` may mean a module `a.b`, so both come."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (origin, *(f"{origin}.{alias.name}" for alias in node.names))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def main(arguments: list[str]) -> int:
    """Prune as the command line says."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(prune(Path(arguments[0]), arguments[1]))
    except ValueError as error:
        print(f"reached.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
