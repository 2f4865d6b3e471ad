"""Mutants of a promise: cosmic-ray's operators and left-out statements in its functions, and its own replacements."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from tests.mutation.promises import ROOT, Promise, function_named, place_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change of one file."""

    file: str
    number: int
    line: str
    """The first line that changed, as it was."""
    becomes: str
    """That line in the mutant."""
    original: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.line}  →  {self.becomes or '(nothing)'}"


def mutants_of(promise: Promise, operators: frozenset[str]) -> list[Mutant]:
    """All mutants of a promise, each changed text once. Raises `WrongList`."""
    source = (ROOT / promise.file).read_text()
    texts: dict[str, None] = {}
    for replacement in promise.without:
        place = place_of(source, replacement)
        texts[source[:place] + replacement.new + source[place + len(replacement.old) :]] = None
    tree = ast.parse(source)
    for name in promise.functions:
        function = function_named(tree, name)
        # The signature and the docstring carry no behaviour.
        first = function.body[1] if ast.get_docstring(function) is not None else function.body[0]
        lines = range(first.lineno, (function.end_lineno or first.lineno) + 1)
        texts |= dict.fromkeys(_by_operators(source, lines, operators))
        texts |= dict.fromkeys(_left_out(source, function))
    texts.pop(source, None)
    return [_mutant(promise.file, source, text) for text in texts]


def _by_operators(source: str, lines: range, operators: frozenset[str]) -> Iterator[str]:
    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(operators):
        operator = cosmic_ray.plugins.get_operator(name)()
        positions = [position for node in nodes for position in operator.mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(positions):
            if line in lines:
                yield mutate_code(source, operator, occurrence)


def _left_out(source: str, function: ast.FunctionDef) -> Iterator[str]:
    """cosmic-ray changes and never removes: here a call or a refusal is not made at all."""
    lines = source.splitlines(keepends=True)
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    for node in ast.walk(function):
        refusal = isinstance(node, ast.Raise) and node.exc is not None
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if (refusal or call) and node is not docstring:
            assert isinstance(node, ast.stmt)
            indent = " " * node.col_offset
            yield "".join([*lines[: node.lineno - 1], f"{indent}pass\n", *lines[node.end_lineno :]])


def _mutant(file: str, source: str, text: str) -> Mutant:
    old, new = source.splitlines(), text.splitlines()
    pairs = enumerate(zip(old, new, strict=False))
    number = next((number for number, (before, after) in pairs if before != after), min(len(old), len(new)) - 1)
    return Mutant(
        file=file,
        number=number + 1,
        line=old[number].strip(),
        becomes=new[number].strip() if number < len(new) else "",
        original=source,
        source=text,
    )
