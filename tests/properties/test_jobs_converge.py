"""A deletion or a first clearing that is killed anywhere, and goes on in another process, by another call or after a
reboot, ends with all of the content erased, and nobody sees or loses anything meanwhile.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi.core.errors import Refused
from csi.node import erasing, observe, progress
from csi.node.desk import Desk, Surroundings, View
from csi.node.jobs import Job, Jobs, Kind
from csi.node.kubelet_places import KubeletPlaces
from csi.node.locks import VolumeLocks
from csi.node.plan import provision, stage, steps
from csi.node.staged_marks import StagedMarks
from csi.node.volume import State
from tests.fakes.node import FRESH, HALF, ZEROED, Killed
from tests.properties.test_node_converges import _CONFIG, _NAME, _STAGING, _TARGET, Driver

_KUBELET = KubeletPlaces.of(PurePosixPath("/var/lib/kubelet"))
_SECRET = "what the tenant wrote"


class AtOnce(Jobs):
    """A job runs in the thread that begins it, so that a kill ends both as it ends a process."""

    def start(self, *given: Any) -> Job:
        kind, lv, work, *_ = given
        job = Job(kind=kind, lv=lv, work=work)
        work(job)
        return job

    def wait(self, job: Job, seconds: float = 0.0) -> None:
        pass


class Process(Desk):
    """One life of the driver over the toy."""

    def look(self, volume_id: str, call: str) -> View:
        node = self.lvm
        report = node.report()  # type: ignore[attr-defined]
        found = provision.by_id(report, volume_id)
        seen = replace(found, live=node.live(volume_id)) if found is not None else None  # type: ignore[attr-defined]
        around = Surroundings(mounts=(), entries=())
        return View(volume_id=volume_id, volume=seen, report=report, around=around, kubelet=self._kubelet)


class World:
    """A toy node, its disk, and the processes of the driver that come and go on it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.driver = Driver(kind=kind)
        self.node = self.driver.node
        self.folder = folder
        self.boot = 1

    def process(self) -> Desk:
        carry_out: Callable[[Any], None] = lambda step: self.node.apply((step,))  # noqa: E731
        return Process(
            settings=SimpleNamespace(
                state_dir=self.folder,
                config=_CONFIG,
                kubelet_dir=PurePosixPath(self.folder),
                plugin_dir=self.folder / "plugins" / "d",
            ),  # type: ignore[arg-type]
            runner=None,  # type: ignore[arg-type]
            lvm=self.node,  # type: ignore[arg-type]
            registry=None,  # type: ignore[arg-type]
            handlers=dict.fromkeys(get_args(steps.Step), carry_out),
            locks=VolumeLocks(),
            jobs=AtOnce(),
        )

    def reboot(self) -> None:
        self.node.reboot()
        self.boot += 1

    def stage(self, desk: Desk) -> None:
        def plan(view: View) -> steps.Plan:
            where = self.node.path(_STAGING)
            return stage.stage(
                view.existing, self.driver.capability, where, node_is_right=view.existing.live is not None
            )

        erasing.carry_out(desk, erasing.Task(kind=Kind.PREPARE, volume_id=_NAME, plan=plan))

    def delete(self, desk: Desk) -> None:
        erasing.carry_out(desk, erasing.delete(desk, _NAME))

    def resume(self, desk: Desk) -> None:
        erasing.resume(desk, self.node.report())

    def attempt(self, act: Callable[[Desk], None], fuse: int | None) -> bool:
        """A new process does it and is killed at a moment; answers whether it died."""
        self.node.fuse = fuse
        try:
            act(self.process())
        except Killed:
            return True
        finally:
            self.node.fuse = None
        return False


@contextmanager
def world(kind: str) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        made = World(kind, Path(folder))
        publications = made.node.publications
        patch.setattr(observe, "publications", lambda *_: publications(_NAME))
        patch.setattr(StagedMarks, "path_of", lambda _, volume_id: made.node.staged.get(volume_id))
        patch.setattr(progress, "boot_id", lambda: str(made.boot))
        yield made


def used(there: World) -> None:
    """A tenant has written to the volume and has let it go."""
    for call in ("create", "stage", "publish"):
        there.driver.call(call)
    assert there.node.pod_write(_NAME, _TARGET, _SECRET) in ("volume", "guest")
    for call in ("unpublish", "unstage"):
        there.driver.call(call)


def deaths(act: Callable[[World, Desk], None], prepare: Callable[[World], None], kind: str) -> Iterator[World]:
    """One world a moment of death of `act`, and the last one in which it lived."""
    for fuse in range(80):
        with world(kind) as there:
            prepare(there)
            died = there.attempt(lambda desk: act(there, desk), fuse)
            yield there
            if not died:
                assert fuse > 3, "it was never killed"
                return
    raise AssertionError("it never got through")


@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("heir", ["delete", "resume"])
@pytest.mark.parametrize("kind", ["ext4", "block", "direct"])
def test_a_deletion_killed_at_every_moment_ends_wiped_and_gone(kind: str, heir: str, power_cut: bool) -> None:
    for there in deaths(World.delete, used, kind):
        found = there.driver.volume
        if power_cut:
            there.reboot()
        if found is not None and found.state is State.READY:
            assert there.node.content[_NAME] == _SECRET, "a volume that nobody gave up yet has lost data"
        elif found is not None:
            with pytest.raises(Refused, match="is being deleted"):
                there.stage(there.process())
        marked = found is None or found.state is State.DELETING
        there.attempt(there.resume if heir == "resume" and marked else there.delete, None)
        assert there.node.lvs == {}
        assert there.node.content[_NAME] == ZEROED
        there.resume(there.process())
        assert list((there.folder / "jobs").glob("*")) == [], "a note is left behind"


@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("kind", ["block", "direct", "sealed"])
def test_a_first_clearing_killed_at_every_moment_shows_nothing_of_before(kind: str, power_cut: bool) -> None:
    for there in deaths(World.stage, lambda there: there.driver.call("create"), kind):
        if power_cut:
            there.reboot()
        there.attempt(there.stage, None)
        assert there.driver.volume is not None
        assert there.driver.volume.state is State.READY
        assert there.node.content[_NAME] not in (FRESH, HALF)
        there.driver.call("unstage")
        there.delete(there.process())
        assert there.node.lvs == {}


@settings(max_examples=150)
@given(data=st.data(), kind=st.sampled_from(["ext4", "block", "direct", "discard"]))
def test_several_processes_and_calls_one_after_another_converge(data: st.DataObject, kind: str) -> None:
    with world(kind) as there:
        used(there)
        for _ in range(data.draw(st.integers(0, 8))):
            act = data.draw(st.sampled_from([there.delete, there.resume, there.reboot, there.stage]))
            if act == there.reboot:
                there.reboot()
                continue
            found = there.driver.volume
            if act == there.stage and (found is None or found.state is State.READY):
                continue
            refused = pytest.raises(Refused, match="is being deleted") if act == there.stage else nullcontext()
            with refused:
                there.attempt(act, data.draw(st.integers(0, 14)))
        there.attempt(there.delete, None)
        assert there.node.lvs == {}
        if kind != "discard":
            assert there.node.content[_NAME] == ZEROED


def test_a_process_that_was_killed_has_left_its_progress_to_the_next() -> None:
    with world("ext4") as there:
        used(there)
        zeroed: list[int] = []
        apply = there.node.apply

        def watched(plan: steps.Plan) -> None:
            zeroed.extend(step.offset for step in plan if isinstance(step, steps.ZeroRange))
            apply(plan)

        there.node.apply = watched  # type: ignore[method-assign]
        assert there.attempt(there.delete, 14)
        before = len(zeroed)
        assert before > 1
        there.attempt(there.resume, None)
        assert zeroed[before] == zeroed[before - 1], "it began anew, or left out what was not done"
