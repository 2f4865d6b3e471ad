"""LVM's refusal of one group ends no search, and the room that it would not give is not named again."""

from typing import Any

import pytest

from csi.core.errors import NoSpace, Unavailable
from csi.node.effects import Effects
from csi.node.plan import steps
from csi.node.refusals import Refusals


class Lvm:
    """Refuses some groups, fails in others."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.made: list[tuple[str, int]] = []

    def create(self, vg: str, name: str, *, extents: int, **_: Any) -> None:
        if vg in self.errors:
            raise self.errors[vg]
        self.made.append((vg, extents))

    def remove(self, vg: str, name: str) -> None:
        pass


def places(first: str, *others: str) -> steps.CreateLV:
    first_one, *rest = (
        steps.CreateLV(vg=vg, name="pvc-1", extents=number, tags=()) for number, vg in enumerate((first, *others))
    )
    return steps.CreateLV(vg=first_one.vg, name="pvc-1", extents=0, tags=(), otherwise=tuple(rest))


def carry_out(lvm: Lvm, refusals: Refusals, step: Any) -> None:
    toy: Any = object()
    effects = Effects(toy, lvm, toy, refusals)  # type: ignore[arg-type]
    effects.handlers()[type(step)](step)


def test_the_first_place_that_lvm_takes_is_the_volume_s() -> None:
    lvm, refusals = Lvm(a=NoSpace("a is odd"), b=NoSpace("b is odd")), Refusals()
    carry_out(lvm, refusals, places("a", "b", "c", "d"))
    assert lvm.made == [("c", 2)]
    assert refusals.now().keys() == {"a", "b"}
    assert "a is odd" in refusals.now()["a"]


def test_when_none_takes_it_each_is_named_with_lvm_s_words() -> None:
    lvm, refusals = Lvm(a=NoSpace("a is odd"), b=NoSpace("b is odd")), Refusals()
    with pytest.raises(NoSpace, match=r"takes the volume nowhere.*a is odd; b is odd"):
        carry_out(lvm, refusals, places("a", "b"))
    assert refusals.now().keys() == {"a", "b"}


def test_any_other_failure_ends_the_search() -> None:
    """It may have made the volume: a second one elsewhere would be a leak."""
    lvm, refusals = Lvm(a=Unavailable("nobody knows")), Refusals()
    with pytest.raises(Unavailable):
        carry_out(lvm, refusals, places("a", "b"))
    assert lvm.made == []
    assert not refusals.now()


@pytest.mark.parametrize("step", [places("a"), steps.RemoveLV(vg="a", name="pvc-0")])
def test_a_change_in_the_group_ends_the_refusal(step: Any) -> None:
    refusals = Refusals()
    refusals.note("a", "odd")
    refusals.note("b", "odd")
    carry_out(Lvm(), refusals, step)
    assert refusals.now() == {"b": "odd"}


def test_a_refusal_is_forgotten_after_five_minutes() -> None:
    time = [0.0]
    refusals = Refusals(lambda: time[0])
    refusals.note("a", "odd")
    time[0] = 299.0
    assert refusals.now() == {"a": "odd"}
    time[0] = 300.0
    assert refusals.now() == {}
