"""An option is declared once, and whatever speaks of it, help, variables, defaults, tables, says what was declared."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from csi.core import options
from csi.core.errors import InvalidInput
from csi.core.options import Given, Option
from csi.node import settings

ROOT = Path(__file__).resolve().parents[2]

NAME = Option(name="node-id", check=options.any_text, help="the node's name")
KEY = Option(name="key", check=options.any_text, default="topology.{node-id}/node", help="a key", also="OTHER_KEY")
COUNT = Option(name="count", check=options.whole_number, default="3", help="how many", variable="HOW_MANY")
PREFIX = Option(name="prefix", check=options.any_text, default="", help="words before")
ALL = (NAME, KEY, COUNT, PREFIX)


def given(*arguments: str, **environment: str) -> Given:
    parser = argparse.ArgumentParser()
    options.declare(parser, ALL)
    return options.read(ALL, parser.parse_args(arguments), environment)


def test_command_line_own_variable_others_variable_default_in_this_order() -> None:
    environment = {"SEALED_LOCAL_KEY": "own", "OTHER_KEY": "others"}
    assert given("--key", "line", **environment)[KEY] == "line"
    assert given(**environment)[KEY] == "own"
    assert given(OTHER_KEY="others")[KEY] == "others"
    assert given("--node-id", "a")[KEY] == "topology.a/node"


def test_a_default_follows_the_option_that_it_names_wherever_that_came_from() -> None:
    assert given(SEALED_LOCAL_NODE_ID="b")[KEY] == "topology.b/node"


def test_the_variable_may_have_a_name_of_its_own() -> None:
    assert given(HOW_MANY="5")[COUNT] == 5
    assert given(SEALED_LOCAL_COUNT="5")[COUNT] == 3


def test_what_is_given_empty_is_given() -> None:
    assert given("--key", "", SEALED_LOCAL_KEY="own")[KEY] == ""
    assert given(SEALED_LOCAL_KEY="", OTHER_KEY="others")[KEY] == ""
    assert KEY in given(SEALED_LOCAL_KEY="")
    assert KEY not in given()


def test_an_option_that_must_be_given_is_asked_for_with_its_meaning_and_its_variable() -> None:
    with pytest.raises(InvalidInput) as caught:
        given()[NAME]
    assert str(caught.value) == "--node-id: is required; give the node's name (or set SEALED_LOCAL_NODE_ID)"


def test_a_wrong_value_is_named_by_its_option_wherever_it_came_from() -> None:
    for wrong in (given("--count", "x"), given(HOW_MANY="x")):
        with pytest.raises(InvalidInput) as caught:
            wrong[COUNT]
        assert str(caught.value) == "--count: 'x' is not a whole number"


@pytest.mark.parametrize("text", ["relative", "", "/a/../b", "./a"])
def test_a_path_is_absolute_and_does_not_climb(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a plain absolute path"):
        options.absolute_path(text, "--dir")


def test_one_of_some_words() -> None:
    check = options.one_of("a", "b")
    assert check("b", "--x") == "b"
    with pytest.raises(InvalidInput, match="'c' is none of a, b"):
        check("c", "--x")


def test_the_table_says_what_is_declared() -> None:
    assert options.table(ALL) == (
        "| option | variable | default | meaning |\n"
        "|---|---|---|---|\n"
        "| `--node-id` | `SEALED_LOCAL_NODE_ID` | none, **required** | the node's name |\n"
        "| `--key` | `SEALED_LOCAL_KEY`, else `OTHER_KEY` | `topology.NODE-ID/node` | a key |\n"
        "| `--count` | `HOW_MANY` | `3` | how many |\n"
        "| `--prefix` | `SEALED_LOCAL_PREFIX` | none | words before |\n"
    )


def test_the_help_says_what_is_declared() -> None:
    parser = argparse.ArgumentParser()
    options.declare(parser, ALL)
    told = " ".join(parser.format_help().split())
    assert "the node's name (required)" in told
    assert "a key (default: topology.NODE-ID/node; also OTHER_KEY)" in told
    assert "how many (default: 3)" in told
    assert "words before (default: none)" in told


def test_the_tables_of_the_documentation_are_as_the_script_writes_them() -> None:
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import write_tables as w\n"
        "for page in w.PAGES:\n"
        "    text = (w.ROOT / page).read_text()\n"
        "    assert '<!-- options: ' in text, f'{page} has no table'\n"
        "    assert w.written(text) == text, f'{page}: run make tables'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_node_option_is_in_its_page() -> None:
    page = (ROOT / "docs/node.md").read_text()
    assert options.table(settings.OPTIONS) in page


@pytest.mark.parametrize("digits", [19, 5000])
def test_a_number_that_fits_nowhere_is_refused_by_its_length(digits: int) -> None:
    with pytest.raises(InvalidInput, match=f"--x: is a number of {digits} digits; give at most 18"):
        options.whole_number("9" * digits, "--x")
    assert options.whole_number("9" * 18, "--x") < 2**63
