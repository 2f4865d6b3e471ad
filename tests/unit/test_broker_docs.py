"""The tables of docs/broker.md say what the program offers: commands and options come from the parser itself."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from csi.broker.main import parser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "broker.md"
BEGIN, END = "<!-- commands: made from the parser -->\n", "<!-- end of commands -->\n"


def commands(found: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, below in action.choices.items():
                inner = list(commands(below, f"{name}{word} "))
                yield from inner or [(f"{name}{word}", below, helps[word])]


def word_of(action: argparse.Action) -> str:
    metavar = str(action.metavar or "/".join(action.choices or ()))
    word = f"{action.option_strings[-1]} {metavar}".strip() if action.option_strings else metavar
    return word if action.required else f"[{word}]"


def table() -> str:
    lines = ["| command | what it does, and its options |", "|---|---|"]
    for name, found, text in commands(parser()):
        actions = [action for action in found._actions if action.dest not in ("help", "dir")]
        words = " ".join([name, *map(word_of, actions)])
        formatter = found._get_formatter()
        helps = [
            f"`{word_of(action).strip('[]')}`: {formatter._expand_help(action)}" for action in actions if action.help
        ]
        lines.append(f"| `{words}` | {'. '.join([text, *helps])} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_commands_is_the_parsers() -> None:
    page = PAGE.read_text()
    assert BEGIN in page
    assert page.partition(BEGIN)[2].partition(END)[0] == table(), f"put this between the marks:\n{table()}"


def test_every_option_has_a_help() -> None:
    silent = [
        f"{name} {action.option_strings[-1]}"
        for name, found, _ in commands(parser())
        for action in found._actions
        if action.option_strings and not action.help
    ]
    assert silent == []
