"""YAML of which a person and every reader see the same: no key twice, no number that versions of YAML read differently.

PyYAML reads YAML 1.1: there `010` is eight, `1:30` is ninety, `1_000` a thousand, `no` is false, and `1e3` is a text.
Whoever writes one of them by accident learns it here and not from a node that keeps the wrong room free.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from csi.core.errors import InvalidInput

_PREFIX: Final = "tag:yaml.org,2002:"
_MOST_DIGITS: Final = 18
"""More don't fit into 64 bits, and many more stop Python."""
_DECIMAL: Final = re.compile(r"0|-?[1-9][0-9]*")
_BOOLEAN: Final = re.compile(r"true|True|TRUE|false|False|FALSE")
_NUMBER_ELSEWHERE: Final = re.compile(r"0o[0-7]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
"""What YAML 1.2 takes for a number. Where YAML 1.1 takes it for a text, the two differ."""


def load(text: str, source: str) -> Any:
    """What a text holds; None for an empty one. Raises `InvalidInput` naming `source` and the place in it."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            for problem in _problems(root):
                raise InvalidInput(f"{source}{problem[0]}", problem[1])
            return None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise InvalidInput(source, f"is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InvalidInput(source, "is nested too deeply") from error


def _problems(root: yaml.Node | None) -> Iterator[tuple[str, str]]:
    """Place and problem, for everything that is refused. A part that is named twice (`*alias`) is looked at once."""
    waiting = [("", root)] if root is not None else []
    seen: set[int] = set()
    while waiting:
        place, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield from _repeated(place, node)
            waiting += [(_member(place, key.value), value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(f"{place}[{number}]", value) for number, value in enumerate(node.value)]
        elif isinstance(node, yaml.ScalarNode) and node.tag == f"{_PREFIX}int" and len(node.value) > _MOST_DIGITS:
            yield place, f"the number in line {node.start_mark.line + 1} has more than {_MOST_DIGITS} digits"
        elif isinstance(node, yaml.ScalarNode) and (advice := _advice(node)) is not None:
            line = node.start_mark.line + 1
            yield place, f"{node.value} in line {line} is read differently by versions of YAML; {advice}"


def _advice(node: yaml.ScalarNode) -> str | None:
    """How to write a value that versions of YAML read differently; None for one that all read alike."""
    match node.tag.removeprefix(_PREFIX):
        case "int" if _DECIMAL.fullmatch(node.value) is None:
            return "write it as plain digits"
        case "float":
            return "write it as plain digits, or in quotes when it is a text"
        case "bool" if _BOOLEAN.fullmatch(node.value) is None:
            return "write true or false, or put it in quotes when it is a text"
        case "timestamp":
            return "put it in quotes when it is a text"
        case "str" if node.style is None and _NUMBER_ELSEWHERE.fullmatch(node.value) is not None:
            return "write a number as plain digits, and a text in quotes"
        case _:
            return None


def _repeated(place: str, node: yaml.MappingNode) -> Iterator[tuple[str, str]]:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in lines:
            yield _member(place, key.value), f"stands twice, in line {lines[key.value]} and in line {line}; keep one"
        lines[key.value] = line


def _member(place: str, key: object) -> str:
    return f"{place}.{key}" if place else f": {key}"
