"""The list of promises, `promises.toml`, as types. Reads nothing else, so that the suite can check the list, too."""

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("promises.toml")


class WrongList(Exception):
    """The list names what is not there (any more); the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A mutant of our own: one place of the file's text, and what stands there instead."""

    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One promise in words, the code that carries it, and the tests that guard it."""

    says: str
    file: str
    functions: tuple[str, ...]
    """Functions whose every line is mutated, `name` or `Class.name`."""
    without: tuple[Replacement, ...]
    tests: tuple[str, ...]
    """What pytest is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A mutant that may live, and why."""

    file: str
    line: str
    becomes: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseList:
    """The whole list."""

    operators: frozenset[str]
    promises: tuple[Promise, ...]
    accepted: tuple[Accepted, ...]


def load(path: Path = LIST) -> PromiseList:
    """Read the list. Raises `KeyError` or `TypeError` for a list that is not one."""
    table = tomllib.loads(path.read_text())
    return PromiseList(
        operators=frozenset(table["operators"]),
        promises=tuple(_promise(entry) for entry in table["promise"]),
        accepted=tuple(Accepted(**entry) for entry in table.get("accepted", [])),
    )


def _promise(entry: dict[str, Any]) -> Promise:
    return Promise(
        says=entry["says"],
        file=entry["file"],
        functions=tuple(entry.get("functions", [])),
        without=tuple(Replacement(**pair) for pair in entry.get("without", [])),
        tests=tuple(entry["tests"]),
    )


def function_named(tree: ast.Module, name: str) -> ast.FunctionDef:
    """The function or method of that name. Raises `WrongList` when there is none."""
    scope: ast.AST = tree
    for part in name.split("."):
        found = [
            node
            for node in ast.iter_child_nodes(scope)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
        ]
        if not found:
            raise WrongList(f"there is no function {name}; has it been renamed or moved?")
        scope = found[0]
    if not isinstance(scope, ast.FunctionDef):
        raise WrongList(f"{name} is not a function")
    return scope


def place_of(source: str, replacement: Replacement) -> int:
    """Where the text to replace begins. Raises `WrongList` unless it is there exactly once."""
    count = source.count(replacement.old)
    if count != 1:
        raise WrongList(f"this text is there {count} times instead of once: {replacement.old!r}")
    return source.index(replacement.old)
