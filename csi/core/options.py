"""An option of a program, declared once: command line, environment, defaults and the documentation's table come from it.

It knows of texts and checks only; what an option means stands where the option is declared. It reads no file and no
environment by itself.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Generic, TypeVar

from csi.core.errors import InvalidInput

T = TypeVar("T")

_MOST_DIGITS: Final = 18
_OTHER: Final = re.compile(r"\{([a-z-]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option(Generic[T]):
    """One option. Its value is a text until `check` has made a `T` of it."""

    name: str
    """As on the command line, without the dashes: `node-id`."""
    check: Callable[[str, str], T]
    """Makes the value of a text; is told the option's name for the `InvalidInput` that it raises."""
    help: str
    """What it means, in a sentence that does not repeat name or default."""
    default: str | None = None
    """Its text when nothing is given; `{other-option}` stands for that option's text. None: it must be given."""
    variable: str = ""
    """The environment variable, when it is not the one made of the name."""
    also: str = ""
    """A further variable, that others have defined; it counts after our own."""

    @property
    def flag(self) -> str:
        """As people write it and as errors name it."""
        return f"--{self.name}"

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that may hold it, the first of them that is set counts."""
        own = self.variable or f"SEALED_LOCAL_{self.name.replace('-', '_').upper()}"
        return (own, self.also) if self.also else (own,)

    @property
    def shown_default(self) -> str:
        """The default as help and documentation show it; `{other-option}` becomes OTHER-OPTION."""
        return _OTHER.sub(lambda match: match[1].upper(), self.default or "")


class Given:
    """What was given for a program's options. A value is checked when it is asked for."""

    def __init__(self, texts: Mapping[str, str], options: Iterable[Option[Any]]) -> None:
        self._texts = dict(texts)
        self._options = {option.name: option for option in options}

    def __getitem__(self, option: Option[T]) -> T:
        """The checked value. Raises `InvalidInput` naming the option."""
        return option.check(self.text(option), option.flag)

    def __contains__(self, option: Option[Any]) -> bool:
        """Whether it was given, and is not just the default."""
        return option.name in self._texts

    def text(self, option: Option[Any]) -> str:
        """The text that counts. Raises `InvalidInput` when there is none."""
        if option.name in self._texts:
            return self._texts[option.name]
        if option.default is None:
            raise InvalidInput(option.flag, f"is required; give {option.help} (or set {option.variables[0]})")
        return _OTHER.sub(lambda match: self.text(self._options[match[1]]), option.default)


def declare(parser: argparse.ArgumentParser, options: Iterable[Option[Any]]) -> None:
    """Add the options to a command line."""
    for option in options:
        # argparse must not know the defaults: what is not given may still come from the environment.
        parser.add_argument(option.flag, dest=option.name, help=f"{option.help} ({_without(option)})")


def read(options: Iterable[Option[Any]], arguments: argparse.Namespace, environment: Mapping[str, str]) -> Given:
    """What was given: on the command line, else in the environment."""
    known = tuple(options)
    texts = {}
    for option in known:
        on_the_line = getattr(arguments, option.name)
        found = [environment[name] for name in option.variables if name in environment]
        if on_the_line is not None or found:
            texts[option.name] = str(on_the_line if on_the_line is not None else found[0])
    return Given(texts, known)


def table(options: Iterable[Option[Any]]) -> str:
    """The options as a table in Markdown."""
    rows = [f"| `{option.flag}` | {_variables(option)} | {_cell(option)} | {option.help} |" for option in options]
    return "\n".join(["| option | variable | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


# Checks that several options share


def any_text(text: str, _: str) -> str:
    """Whatever was given."""
    return text


def whole_number(text: str, field: str) -> int:
    """Decimal digits only, and no more of them than fit into 64 bits. Raises `InvalidInput`."""
    if not text.isascii() or not text.isdigit():
        raise InvalidInput(field, f"{text!r} is not a whole number")
    if len(text) > _MOST_DIGITS:
        raise InvalidInput(field, f"is a number of {len(text)} digits; give at most {_MOST_DIGITS}")
    return int(text)


def absolute_path(text: str, field: str) -> PurePosixPath:
    """A path from the root that doesn't climb and doesn't end in a blank, which nobody sees. Raises `InvalidInput`."""
    path = PurePosixPath(text)
    if text != text.strip() or not text.isprintable():
        raise InvalidInput(field, f"{text!r} begins or ends with a blank, or holds a control character; take it out")
    if not path.is_absolute() or ".." in path.parts:
        raise InvalidInput(field, f"{text!r} is not a plain absolute path")
    return path


def one_of(*words: str) -> Callable[[str, str], str]:
    """The check for one of some words. What it returns raises `InvalidInput`."""

    def check(text: str, field: str) -> str:
        if text not in words:
            raise InvalidInput(field, f"{text!r} is none of {', '.join(words)}")
        return text

    return check


# How it is shown


def _without(option: Option[Any]) -> str:
    also = f"; also {option.also}" if option.also else ""
    return ("required" if option.default is None else f"default: {option.shown_default or 'none'}") + also


def _variables(option: Option[Any]) -> str:
    return ", else ".join(f"`{name}`" for name in option.variables)


def _cell(option: Option[Any]) -> str:
    if option.default is None:
        return "none, **required**"
    return f"`{option.shown_default}`" if option.default else "none"
