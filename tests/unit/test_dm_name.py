"""The kernel's names of LVs lead back to group and volume, whatever hyphens are in them."""

from hypothesis import given
from hypothesis import strategies as st

from csi.node.lvm import dm_name

NAMES = st.from_regex(r"[a-zA-Z0-9_.+][a-zA-Z0-9_.+-]{0,20}", fullmatch=True)


def test_hyphens_are_doubled_as_lvm_does() -> None:
    assert dm_name.encode("fast-0", "pvc-1-2") == "fast--0-pvc--1--2"
    assert dm_name.decode("fast--0-pvc--1--2") == ("fast-0", "pvc-1-2")


@given(NAMES, NAMES)
def test_every_name_comes_back(vg: str, lv: str) -> None:
    assert dm_name.decode(dm_name.encode(vg, lv)) == (vg, lv)


def test_names_of_other_mappings_are_nobodys() -> None:
    for name in ("sealed", "vg0-lv0-real", "", "-", "mpath--a"):
        assert dm_name.decode(name) is None
