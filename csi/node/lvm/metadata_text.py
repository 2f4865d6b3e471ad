"""LVM's metadata text (lib/format_text/export.c): the whole of it to nested sections, or `NotUnderstood`.

    vg0 {                                sections, closed by }
    extent_size = 8192                   whole numbers
    id = "RacCKb-jHhb-..."               texts, with \\" and \\\\ escaped
    status = ["READ", "WRITE"]           lists of both
    # a comment

Only what LVM itself writes is taken; it says nothing of what the sections mean (`metadata_model`).
"""

import re
from collections.abc import Iterator
from typing import Final

from csi.node.lvm.metadata_area import NotUnderstood

Scalar = int | str
Value = Scalar | list[Scalar]
Section = dict[str, "Value | Section"]

_TOKEN: Final = re.compile(r'(?:\s+|#[^\n]*)*("(?:[^"\\\n]|\\[^\n])*"|[A-Za-z0-9_+./@-]+|.|\Z)', re.DOTALL)
"""A text, a word or a single character, and what may stand before it; none goes over the end of a line. A character that
has no meaning is refused later.
"""

_EDGE: Final = re.compile(r"^(?:[^\s\"#]+ (\{)|\})\n", re.MULTILINE)
"""A line that opens a section, or closes one."""

_NUMBER: Final = re.compile(r"-?[0-9]{1,19}")
_ESCAPED: Final = re.compile(r'\\(["\\])')
_END: Final = ""
_DEPTH_LIMIT: Final = 8


def parse(text: str) -> Section:
    """The top level of the text. Raises `NotUnderstood` for anything that LVM would not have written."""
    return _Reader(_TOKEN.findall(text)).whole()


def cut(text: bytes, section: str) -> tuple[str, Iterator[str]]:
    """The text without the sections that lie in the one of this name, and these, each as a text of its own, one at a time:
    all of them at once would leave holes in the memory of a process that remembers little of each.

    They begin and end with a line, and nothing that means anything goes over the end of one: where each part can be parsed
    alone, the parts together mean what the whole does. Raises `NotUnderstood` as `parse` does.
    """
    try:
        decoded = text.decode("ascii")
    except UnicodeDecodeError as error:
        raise NotUnderstood("the metadata text holds other bytes than ASCII") from error
    opened = decoded.find(f"\n{section} {{\n")
    if opened < 0:
        return decoded, iter(())
    begin = at = opened + len(f"\n{section} {{\n")
    spans, depth = list[tuple[int, int]](), 0
    for edge in _EDGE.finditer(decoded, begin):
        depth += 1 if edge[1] else -1
        if depth < 0:
            break
        if depth == 0:
            spans.append((at, edge.end()))
            at = edge.end()
    return decoded[:begin] + decoded[at:], (decoded[start:end] for start, end in spans)


class _Reader:
    """Goes through the parts once."""

    def __init__(self, parts: list[str]) -> None:
        self._tokens = parts
        self._at = 0

    def whole(self) -> Section:
        """All of it."""
        return self._section(_END, 0)

    def _next(self) -> str:
        part = self._tokens[self._at] if self._at < len(self._tokens) else _END
        self._at += 1
        return part

    def _section(self, end: str, depth: int) -> Section:
        if depth > _DEPTH_LIMIT:
            raise NotUnderstood("the metadata text has sections in sections without end")
        found: Section = {}
        while (name := self._next()) != end:
            if not _is_name(name) or name in found:
                raise NotUnderstood(f"the metadata text has {name!r} where a new name must stand")
            match self._next():
                case "{":
                    found[name] = self._section("}", depth + 1)
                case "=":
                    found[name] = self._value()
                case other:
                    raise NotUnderstood(f"the metadata text has {other!r} behind {name!r}")
        return found

    def _value(self) -> Value:
        part = self._next()
        return self._list() if part == "[" else _scalar(part)

    def _list(self) -> list[Scalar]:
        part = self._next()
        if part == "]":
            return []
        found = [_scalar(part)]
        while (mark := self._next()) == ",":
            found.append(_scalar(self._next()))
        if mark != "]":
            raise NotUnderstood(f"the metadata text has {mark!r} in a list")
        return found


def _is_name(part: str) -> bool:
    return (part[:1].isascii() and part[:1].isalnum()) or part[:1] in {"_", "+", ".", "-"}


def _scalar(part: str) -> Scalar:
    if len(part) > 1 and part.startswith('"'):
        return _ESCAPED.sub(r"\1", part[1:-1]) if "\\" in part else part[1:-1]
    if _NUMBER.fullmatch(part):
        return int(part)
    raise NotUnderstood(f"the metadata text has {part!r} where a value must stand")
