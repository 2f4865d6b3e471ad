"""Any CSI name leads to one LV name that LVM accepts, and an operator recognises it where that is possible."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.errors import InvalidInput, NotFound
from csi.node.lvm.names import checked_csi_name, checked_id, checked_vg_name, lv_name, name_digest

PVC = "pvc-8f5d5d0e-41a8-4b8a-9d0b-0c6f3a1c2b7d"
HASHED = re.compile(r"sl-[0-9a-f]{40}")

# lvm(8), "VALID NAMES".
CHARACTERS = re.compile(r"[A-Za-z0-9+_.-]+")
RESERVED_STARTS = ("snapshot", "pvmove")
RESERVED_PARTS = (
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_rimage", "_rmeta", "_tdata",
    "_tmeta", "_pmspare", "_imeta", "_iorig", "_vdata", "_vorigin",
)  # fmt: skip


def check_legal(name: str) -> None:
    """What LVM demands of an LV name, and device-mapper of its doubled form (63 of its 127 bytes are the LV's)."""
    assert CHARACTERS.fullmatch(name)
    assert not name.startswith(("-", *RESERVED_STARTS))
    assert not any(part in name for part in RESERVED_PARTS)
    assert name not in (".", "..")
    assert len(name.replace("-", "--")) <= 63


@pytest.mark.parametrize("name", [PVC, "a", "A+b_c.d-9", "0", ".hidden", "...", "_", "my_snapshot", "x" * 63])
def test_a_legal_name_is_kept(name: str) -> None:
    assert lv_name(name) == name
    assert checked_id(name) == name
    check_legal(name)


@pytest.mark.parametrize("name", ["snapshot", "snapshot-1", "pvmove0", "sl-0123", "sl-", ".", ".."])
def test_a_reserved_name_is_hashed(name: str) -> None:
    assert HASHED.fullmatch(lv_name(name))


@pytest.mark.parametrize("part", RESERVED_PARTS)
def test_a_name_with_a_part_that_lvm_keeps_for_itself_is_hashed(part: str) -> None:
    assert HASHED.fullmatch(lv_name(f"a{part}b"))


@pytest.mark.parametrize("name", ["-a", "a b", "a/b", "ä", "a:b", "a\n", "日本", "", "a@b"])
def test_a_name_that_lvm_can_not_spell_is_hashed(name: str) -> None:
    assert HASHED.fullmatch(lv_name(name))


def test_a_hyphen_counts_twice() -> None:
    assert lv_name("a" * 61 + "-") == "a" * 61 + "-"
    assert HASHED.fullmatch(lv_name("a" * 62 + "-"))
    assert HASHED.fullmatch(lv_name("x" * 64))


def test_a_hashed_name_holds_the_first_forty_digits_of_the_digest() -> None:
    assert lv_name("a b") == "sl-" + hashlib.sha256(b"a b").hexdigest()[:40]
    assert name_digest("ä") == hashlib.sha256("ä".encode()).hexdigest()


def test_a_name_that_looks_hashed_can_not_take_the_place_of_the_one_it_imitates() -> None:
    hashed = lv_name("a b")
    assert lv_name(hashed) != hashed


@given(st.text(max_size=128))
def test_every_name_leads_to_a_legal_lv_name_that_is_a_possible_id(name: str) -> None:
    made = lv_name(name)
    check_legal(made)
    assert checked_id(made) == made
    assert made == lv_name(name)
    assert made == name or HASHED.fullmatch(made)


@given(st.sampled_from([*RESERVED_STARTS, *RESERVED_PARTS, "sl-", "-", "."]), st.text("ab-_.", max_size=70))
def test_names_near_the_reserved_words_are_legal_too(word: str, rest: str) -> None:
    for name in (word + rest, rest + word):
        check_legal(lv_name(name))


@pytest.mark.parametrize("name", ["x" * 128, "ä" * 64, PVC, "with space", "日本"])
def test_a_name_within_csi_limits_is_taken_as_it_is(name: str) -> None:
    assert checked_csi_name(name) == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "required"),
        ("x" * 129, "129 bytes"),
        ("ä" * 64 + "x", "129 bytes"),
        ("a\0b", "control"),
        ("\x01", "control"),
        ("a\x0bb", "control"),
        ("a\x1f", "control"),
        ("a\x7fb", "control"),
        ("a\x85b", "control"),
        ("a\x9f", "control"),
    ],
)
def test_a_name_beyond_csi_limits_is_refused_by_field(name: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as caught:
        checked_csi_name(name)
    assert caught.value.field == "name"


@pytest.mark.parametrize("value", ["", "-a", "a/b", "../a", "a b", "x" * 64, "ä", "a\n"])
def test_what_the_driver_never_gives_out_is_no_possible_id(value: str) -> None:
    with pytest.raises(NotFound, match="there is no volume"):
        checked_id(value)


@pytest.mark.parametrize("name", ["vg0", "open-local-pool-0", "a.b+c_d", "x" * 63])
def test_a_legal_volume_group_name_is_taken(name: str) -> None:
    assert checked_vg_name(name, "f") == name


@pytest.mark.parametrize("name", ["", "-vg", "a/b", "a b", ".", "..", "x" * 64, "vg\n", "ä", "@tag"])
def test_an_illegal_volume_group_name_is_refused_by_field(name: str) -> None:
    with pytest.raises(InvalidInput, match="volume group name") as caught:
        checked_vg_name(name, "pools[0].vgs[1]")
    assert caught.value.field == "pools[0].vgs[1]"
