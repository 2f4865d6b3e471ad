"""Killed after any step, or in the middle of one, and repeated: create, stage, publish, unpublish, unstage and delete end
with one LV or none, no leaked LV, mount, record or tombstone, and no lost data.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi.core.errors import ForeignContent, SealedLocalError
from csi.core.filesystem import Filesystem
from csi.node import parameters
from csi.node.config import NodeConfig, Pool
from csi.node.lvm import names as volume_names
from csi.node.lvm import tags as volume_tags
from csi.node.plan import deletion, provision, publish, stage, steps, teardown
from csi.node.volume import Access, Capability, State, Volume, Wanted
from tests.fakes.node import FRESH, HALF, ZEROED, JobBegun, Killed, Node
from tests.fakes.others import OTHERS, Other

_CONFIG = NodeConfig(pools=(Pool(name="main", vgs=("vg0",)),), default_pool="main")
_NAME = "pvc-1"
_STAGING, _TARGET = (
    "/var/lib/kubelet/plugins/pvc-1/globalmount",
    "/var/lib/kubelet/pods/p/volumes/kubernetes.io~csi/pvc-1/mount",
)
_KINDS: dict[str, tuple[dict[str, str], bool, str]] = {
    "ext4": ({}, False, "ext4"),
    "xfs": ({}, False, "xfs"),
    "default": ({}, False, ""),
    "block": ({}, True, ""),
    "direct": ({"direct": "true"}, False, "ext4"),
    "sealed": ({"sealed": "xts"}, False, "ext4"),
    "sealed-block": ({"sealed": "xts"}, True, ""),
    "discard": ({"wipe": "discard"}, False, "ext4"),
}
_CALLS = ("create", "stage", "publish", "unpublish", "unstage", "delete")


@dataclass
class Driver:
    """The calls of the host program on a toy node: observe, plan, apply, as `csi.node` does."""

    kind: str
    read_only: bool = False
    node: Node = field(default_factory=Node)

    @property
    def capability(self) -> Capability:
        _, block, fstype = _KINDS[self.kind]
        return Capability(
            block=block, access=Access.SINGLE_NODE_SINGLE_WRITER, fstype=Filesystem(fstype) if fstype else None
        )

    @property
    def wanted(self) -> Wanted:
        given_parameters, _, _ = _KINDS[self.kind]
        return Wanted(
            name=_NAME,
            volume_id=_NAME,
            name_digest=volume_names.name_digest(_NAME),
            size_bytes=400 * 1024 * 1024,
            limit_bytes=None,
            parameters=parameters.parse(given_parameters),
        )

    @property
    def volume(self) -> Volume | None:
        found = provision.by_id(self.node.report(), _NAME)
        return replace(found, live=self.node.live(_NAME)) if found is not None else None

    def call(self, name: str) -> None:
        getattr(self, f"_{name}")()

    def _create(self) -> None:
        self.node.apply(provision.create(_CONFIG, self.node.report(), self.wanted))

    def _stage(self) -> None:
        assert self.volume is not None
        self.node.apply(stage.stage(self.volume, self.capability, self.node.path(_STAGING), node_is_right=True))

    def _publish(self) -> None:
        assert self.volume is not None
        view = publish.Publishing(
            volume=self.volume,
            capability=self.capability,
            read_only=self.read_only,
            staging=self.node.path(_STAGING),
            target=self.node.path(_TARGET),
            publications=self.node.publications(_NAME, _STAGING),
            node_is_right=self.volume.live is not None,
        )
        self.node.apply(publish.publish(view))

    def _unpublish(self) -> None:
        records = {_TARGET: _NAME} if _TARGET in self.node.records else {}
        view = teardown.Unpublishing(
            volume_id=_NAME,
            target=self.node.place(_TARGET),
            record_owners=records,
            roots=(PurePosixPath("/var/lib/kubelet"),),
            devices=self.node.active(_NAME),
            publications=self.node.publications(_NAME),
        )
        self.node.apply(teardown.unpublish(view))

    def _unstage(self) -> None:
        view = teardown.Unstaging(
            volume_id=_NAME,
            staging=self.node.place(_STAGING),
            publications=self.node.publications(_NAME, _STAGING),
            devices=self.node.active(_NAME),
            marked=_NAME in self.node.staged,
        )
        self.node.apply(teardown.unstage(view))

    def _delete(self) -> None:
        if self.volume is not None:
            self.node.apply(
                deletion.delete(
                    self.volume,
                    self.node.report(),
                    self.node.publications(_NAME).targets,
                    staged_at=self.node.staged.get(_NAME),
                )
            )


class DriverWithJobs(Driver):
    """Long work is left to a job, as `csi.node.erasing` does: the call ends before it, the worker looks and plans anew."""

    def call(self, name: str) -> None:
        self.node.leaves_long_work = True
        try:
            super().call(name)
        except JobBegun:
            self.node.leaves_long_work = False
            super().call(name)
        finally:
            self.node.leaves_long_work = False


def _attempt(driver: Driver, call: str, fuse: int | None) -> bool:
    """Carry out a call that is killed at moment `fuse`, if any; answers whether it died."""
    driver.node.fuse = fuse
    try:
        driver.call(call)
    except Killed:
        return True
    finally:
        driver.node.fuse = None
    return False


def _check_always(driver: Driver, written: str | None) -> None:
    """What holds at every moment, also after a kill in the middle."""
    node = driver.node
    assert len(node.lvs) <= 1
    assert node.destroyed == [], "an LV of somebody else is gone"
    if written is not None and driver.volume is not None and driver.volume.state is not State.DELETING:
        assert node.content[_NAME] == written, "data that a pod wrote is gone"
    if _KINDS[driver.kind][0].get("direct") or driver.kind == "sealed":
        shown = node.path(_TARGET)
        if _TARGET not in node.records and shown.top is not None:
            assert shown.is_tombstone, "a runtime that misses the record would write to the host"
        if _TARGET in node.records:
            assert shown.is_tombstone, "a record without a tombstone under it"


def _check_end(driver: Driver) -> None:
    node = driver.node
    assert node.lvs == {}
    assert node.mounts == []
    assert node.records == {}
    assert _TARGET not in node.directories | node.files
    if driver.kind != "discard" and driver.kind not in ("sealed", "sealed-block"):
        assert node.content[_NAME] == ZEROED, "the content was not wiped"


_DRIVERS = st.sampled_from((Driver, DriverWithJobs))


def _live(driver: Driver, kill: Callable[[str], Iterator[int]], reboot: Callable[[], bool]) -> None:
    """A whole life; before each call come its deaths, and after each death, maybe, a reboot."""
    written: str | None = None
    for call in _CALLS:
        for fuse in kill(call):
            if not _attempt(driver, call, fuse):
                break
            _check_always(driver, written)
            if reboot():
                driver.node.reboot()
                _as_kubelet_after_reboot(driver, call)
        driver.call(call)
        before = len(driver.node.formats)
        if call not in ("unstage", "delete"):
            driver.call(call)
            assert len(driver.node.formats) == before, "a repeated call formatted again"
        _check_always(driver, written)
        if call == "publish" and not driver.read_only:
            where = driver.node.pod_write(_NAME, _TARGET, "what the tenant wrote")
            assert where in ("volume", "guest")
            written = "what the tenant wrote"
    _check_end(driver)


def _live_among_others(
    driver: Driver, disturb: Callable[[str], Iterator[tuple[Other, int | None, int | None, bool]]]
) -> None:
    """A whole life; before each call come attempts that somebody else disturbs: who, at which moment of the call (None:
    before it), when the driver is killed, and whether the node is started again.
    """
    node, written = driver.node, None
    for call in _CALLS:
        for other, moment, fuse, reboot in disturb(call):
            _attempt_disturbed(driver, call, other, moment, fuse)
            _check_always(driver, written)
            other.end(node, _NAME)
            if reboot:
                node.reboot()
                _as_kubelet_after_reboot(driver, call)
        driver.call(call)
        _check_always(driver, written)
        if call == "publish":
            node.pod_write(_NAME, _TARGET, "what the tenant wrote")
            written = "what the tenant wrote"
    assert node.foreign == {}
    _check_end(driver)


def _attempt_disturbed(driver: Driver, call: str, other: Other, moment: int | None, fuse: int | None) -> None:
    """A call may be refused by name then; whatever else it raises is a fault of the driver."""
    node = driver.node
    if moment is None or other.between_calls:
        other.begin(node, _NAME)
    else:
        node.visit = (moment, lambda: other.begin(node, _NAME))
    try:
        _attempt(driver, call, fuse)
    except SealedLocalError:
        pass
    finally:
        node.visit = None


def _as_kubelet_after_reboot(driver: Driver, call: str) -> None:
    """kubelet stages again before it publishes again."""
    if call == "publish":
        driver.call("stage")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("call", _CALLS)
def test_killed_at_every_moment_of_a_call_it_converges(kind: str, call: str, read_only: bool) -> None:
    """One run a moment: before and after every step, and in the middle of every step that has a middle."""
    deaths = 0
    for fuse in range(60):
        died = False

        def kill(name: str, fuse: int = fuse) -> Iterator[int]:
            nonlocal died
            if name == call and not died:
                died = True
                yield fuse

        driver = Driver(kind=kind, read_only=read_only)
        _live(driver, kill, lambda: False)
        probe = Driver(kind=kind, read_only=read_only)
        for earlier in _CALLS[: _CALLS.index(call)]:
            probe.call(earlier)
        if not _attempt(probe, call, fuse):
            break
        deaths += 1
    assert deaths >= 2, "the call was never killed"


@settings(max_examples=300)
@given(data=st.data(), kind=st.sampled_from(sorted(_KINDS)), read_only=st.booleans(), made=_DRIVERS)
def test_killed_again_and_again_with_reboots_it_converges(
    data: st.DataObject, kind: str, read_only: bool, made: type[Driver]
) -> None:
    def kill(_: str) -> Iterator[int]:
        yield from data.draw(st.lists(st.integers(0, 20), max_size=4))

    _live(made(kind=kind, read_only=read_only), kill, lambda: data.draw(st.booleans()))


@pytest.mark.parametrize("who", OTHERS)
@pytest.mark.parametrize("kind", ["ext4", "block", "sealed"])
def test_whoever_comes_at_whichever_moment_of_whichever_call_it_converges(kind: str, who: str) -> None:
    for call in _CALLS:
        for moment in (None, *range(12)):

            def disturb(
                now: str, call: str = call, moment: int | None = moment
            ) -> Iterator[tuple[Other, int | None, int | None, bool]]:
                if now == call:
                    yield OTHERS[who], moment, None, False

            _live_among_others(Driver(kind=kind), disturb)


@settings(max_examples=300)
@given(data=st.data(), kind=st.sampled_from(sorted(_KINDS)), made=_DRIVERS)
def test_among_others_killed_and_started_again_it_converges(data: st.DataObject, kind: str, made: type[Driver]) -> None:
    moments = st.none() | st.integers(0, 20)
    comes = st.tuples(st.sampled_from(sorted(OTHERS)), moments, moments, st.booleans())

    def disturb(_: str) -> Iterator[tuple[Other, int | None, int | None, bool]]:
        for who, moment, fuse, reboot in data.draw(st.lists(comes, max_size=3)):
            yield OTHERS[who], moment, fuse, reboot

    _live_among_others(made(kind=kind), disturb)


@pytest.mark.parametrize("call", ["unpublish", "unstage", "delete"])
def test_a_volume_that_an_administrator_removed_by_hand_lets_go(call: str) -> None:
    driver = Driver(kind="ext4")
    for earlier in _CALLS[: _CALLS.index(call)]:
        driver.call(earlier)
    driver.node.lvs.clear()
    for later in _CALLS[_CALLS.index(call) :]:
        driver.call(later)
    assert driver.node.mounts == []
    assert driver.node.records == {}


@pytest.mark.parametrize("kind", ["ext4", "direct"])
def test_a_formatted_volume_that_shows_nothing_is_refused_and_not_formatted(kind: str) -> None:
    driver = Driver(kind=kind)
    for call in ("create", "stage"):
        driver.call(call)
    driver.node.reboot()
    driver.node.content[_NAME] = HALF
    formats = len(driver.node.formats)
    if kind == "ext4":
        with pytest.raises(Exception, match="/dev/vg0/pvc-1"):
            driver.call("stage")
    else:
        driver.call("stage")
    assert len(driver.node.formats) == formats


@pytest.mark.parametrize("kind", ["ext4", "xfs", "direct"])
def test_a_backup_of_the_metadata_that_brings_creating_back_does_not_format_living_data(kind: str) -> None:
    driver = Driver(kind=kind)
    driver.call("create")
    backup = driver.node.lvs[_NAME]
    for call in ("stage", "publish"):
        driver.call(call)
    assert driver.node.pod_write(_NAME, _TARGET, "what the tenant wrote") in ("volume", "guest")
    for call in ("unpublish", "unstage"):
        driver.call(call)
    driver.node.lvs[_NAME] = backup
    with pytest.raises(ForeignContent, match="pvc-1"):
        driver.call("stage")
    assert driver.node.content[_NAME] == "what the tenant wrote"


def test_the_model_notices_a_plan_that_formats_again() -> None:
    """The properties can fail: a stage that forgets what `ready` means loses what the pod wrote."""

    class Forgetful(Driver):
        @property
        def volume(self) -> Volume | None:
            found = super().volume
            return replace(found, state=State.CREATING) if found is not None and found.state is State.READY else found

    driver = Forgetful(kind="block")
    driver.call("create")
    driver.call("stage")
    driver.node.content[_NAME] = "what the tenant wrote"
    driver.call("stage")
    with pytest.raises(AssertionError, match="data that a pod wrote is gone"):
        _check_always(driver, "what the tenant wrote")


def test_the_model_notices_a_record_without_a_tombstone() -> None:
    driver = Driver(kind="direct")
    for call in ("create", "stage", "publish"):
        driver.call(call)
    driver.node.apply((steps.Unmount(target=_TARGET),))
    with pytest.raises(AssertionError, match="without a tombstone"):
        _check_always(driver, None)


def test_a_new_volume_never_shows_what_its_extents_held() -> None:
    for kind in _KINDS:
        driver = Driver(kind=kind)
        for call in ("create", "stage", "publish"):
            driver.call(call)
        assert driver.node.content[_NAME] != FRESH
        assert volume_tags.OURS in driver.node.lvs[_NAME].tags
