"""Init-data: the digest is over the text as it is, byte for byte; what is wrong is refused by the name of its place."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.errors import InvalidInput
from csi.kbs import init_data

TEXT = 'version = "0.1.0"\nalgorithm = "sha384"\n\n[data]\n"a.toml" = "one"\n"b" = """\ntwo\n"""\n'


def test_the_files_are_read() -> None:
    parsed = init_data.parse(TEXT)
    assert parsed.files == {"a.toml": "one", "b": "two\n"}
    assert (parsed.algorithm, parsed.digest) == ("sha384", "sha384:" + hashlib.sha384(TEXT.encode()).hexdigest())


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_the_text_says_by_which_hash_it_is_measured(algorithm: str) -> None:
    text = TEXT.replace("sha384", algorithm)
    assert init_data.parse(text).digest == f"{algorithm}:{hashlib.new(algorithm, text.encode()).hexdigest()}"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_every_changed_byte_is_another_digest_though_the_files_are_the_same(comment: str) -> None:
    other = f"{TEXT}# {comment}\n"
    assert init_data.parse(other).files == init_data.parse(TEXT).files
    assert init_data.parse(other).digest != init_data.parse(TEXT).digest


def test_ends_of_lines_are_part_of_what_is_measured() -> None:
    assert init_data.parse(TEXT.replace("\n", "\r\n")).digest != init_data.parse(TEXT).digest


def test_no_data_is_no_file() -> None:
    assert init_data.parse('version = "0.1.0"\nalgorithm = "sha256"\n').files == {}


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('version = "0.1.0"', 'version = "0.2.0"', "init-data.version"),
        ('version = "0.1.0"', "version = 1", "init-data.version"),
        ('version = "0.1.0"', "", "init-data.version"),
        ('"sha384"', '"md5"', "init-data.algorithm"),
        ('"sha384"', '"SHA384"', "init-data.algorithm"),
        ('"sha384"', '["sha384"]', "init-data.algorithm"),
        ('algorithm = "sha384"', "", "init-data.algorithm"),
        ('"one"', "1", "init-data.data"),
        ('"one"', "{}", "init-data.data"),
        ("[data]", "[[data]]", "init-data.data"),
        ('"one"', '"one', "init-data"),
        ('"one"', '"one"\n"a.toml" = "again"', "init-data"),
        ("[data]", f"x = {'[' * 5000}\n[data]", "init-data"),
        ("[data]", f"x = {'1' * 5000}\n[data]", "init-data"),
    ],
    ids=[
        "new version", "number as version", "no version", "weak hash", "hash in capitals", "two hashes", "no hash",
        "a number as file", "a table as file", "data twice", "no TOML", "a file twice", "deep nesting", "long number",
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(old: str, new: str, field: str) -> None:
    assert old in TEXT
    with pytest.raises(InvalidInput) as caught:
        init_data.parse(TEXT.replace(old, new, 1))
    assert caught.value.field == field


def test_the_place_is_named_as_the_caller_calls_it() -> None:
    with pytest.raises(InvalidInput, match=r"^initdata\.toml\.version: "):
        init_data.parse("", "initdata.toml")


@given(st.text(max_size=60))
def test_any_other_text_is_refused_and_not_more(text: str) -> None:
    with pytest.raises(InvalidInput):
        init_data.parse(text)
