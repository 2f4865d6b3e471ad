"""LVM's refusal of one group ends no search, and the room that it would not give is not named again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from csi.core.errors import NoSpace, Unavailable
from csi.node.config import NodeConfig, Pool
from csi.node.desk import Desk
from csi.node.locks import VolumeLocks
from csi.node.lvm import names as volume_names
from csi.node.lvm.model import PhysicalVolume, Report, VolumeGroup
from csi.node.plan import provision, steps
from csi.node.refusals import Refusals
from csi.node.volume import Parameters, Wanted

EXTENT = 4 << 20
CONFIG = NodeConfig(pools=(Pool(name="main", vgs=("a", "b", "c")),), default_pool="main")
WANTED = Wanted(
    name="pvc-1",
    volume_id=volume_names.lv_name("pvc-1"),
    name_digest=volume_names.name_digest("pvc-1"),
    size_bytes=10 * EXTENT,
    limit_bytes=None,
    parameters=Parameters(),
)


def group(name: str, free: int) -> VolumeGroup:
    disk = PhysicalVolume(name=f"/dev/{name}", extents=100, free_extents=free, allocatable=True, missing=False)
    return VolumeGroup(
        name=name,
        extent_bytes=EXTENT,
        extents=100,
        free_extents=free,
        writable=True,
        exported=False,
        partial=False,
        pvs=(disk,),
        lvs=(),
    )


class Lvm:
    """Three groups, `a` with most room; refuses in some and fails in others. Who allocates must hold that group's turn."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.made: list[str] = []
        self.held: list[str] = []
        self.turns = self

    def report(self) -> Report:
        return Report(vgs=(group("a", 90), group("b", 50), group("c", 20)))

    @contextmanager
    def group(self, vg: str, _: str) -> Iterator[None]:
        self.held.append(vg)
        yield
        self.held.remove(vg)

    def create(self, step: steps.CreateLV) -> None:
        assert self.held == [step.vg]
        if step.vg in self.errors:
            raise self.errors[step.vg]
        self.made.append(step.vg)


def desk(lvm: Lvm) -> Desk:
    toy: Any = None
    handlers: Any = {steps.CreateLV: lvm.create, steps.RemoveLV: lambda _: None}
    return Desk(settings=toy, runner=toy, lvm=lvm, registry=toy, handlers=handlers, locks=VolumeLocks())  # type: ignore[arg-type]


def create(on: Desk) -> None:
    on.allocate(WANTED.volume_id, "CreateVolume", lambda report, now: provision.create(CONFIG, report, WANTED, now))


def test_the_first_group_that_lvm_allocates_in_is_the_volume_s() -> None:
    lvm = Lvm(a=NoSpace("a is odd"), b=NoSpace("b is odd"))
    on = desk(lvm)
    create(on)
    assert lvm.made == ["c"]
    assert on.refusals.now().keys() == {"a", "b"}
    assert "a is odd" in on.conditions(lvm.report()).refused["a"]


def test_when_lvm_allocates_nowhere_each_group_is_named_with_its_reason() -> None:
    lvm = Lvm(a=NoSpace("a is odd"), b=NoSpace("b is odd"), c=NoSpace("c is odd"))
    with pytest.raises(NoSpace) as caught:
        create(desk(lvm))
    for name in "abc":
        assert f"{name} has room for 0 bytes, as {name} is odd" in str(caught.value)


def test_any_other_failure_ends_the_search() -> None:
    """It may have made the volume: a second one elsewhere would be a leak."""
    lvm = Lvm(a=Unavailable("nobody knows"))
    on = desk(lvm)
    with pytest.raises(Unavailable):
        create(on)
    assert (lvm.made, dict(on.refusals.now())) == ([], {})


def test_a_refusal_of_an_earlier_call_is_asked_again() -> None:
    lvm = Lvm(a=NoSpace("a is odd"))
    on = desk(lvm)
    create(on)
    lvm.errors.clear()
    create(on)
    assert lvm.made == ["b", "a"]
    assert not on.refusals.now()


def test_a_deletion_in_the_group_ends_the_refusal() -> None:
    on = desk(Lvm())
    on.refusals.note("a", "odd")
    on.refusals.note("b", "odd")
    on.carry_out((steps.RemoveLV(vg="a", name="pvc-0"),))
    assert on.refusals.now() == {"b": "odd"}


def test_a_refusal_is_forgotten_after_five_minutes() -> None:
    time = [0.0]
    refusals = Refusals(lambda: time[0])
    refusals.note("a", "odd")
    time[0] = 299.0
    assert refusals.now() == {"a": "odd"}
    time[0] = 300.0
    assert refusals.now() == {}
