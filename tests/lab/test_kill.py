"""kill -9 of the real driver in every step of create, stage, publish and delete: the repeated call ends the same."""

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from lab.driver import MIB, REGISTRY, Answer, Driver, lvs, mount_capability, mounts_below
from lab.node import Node
from lab.story import extents

pytestmark = pytest.mark.lab

_CAPABILITY = mount_capability("ext4", "SINGLE_NODE_SINGLE_WRITER")
_MOMENTS = 30
_CONTENT = b"to be wiped when the volume is deleted"
_PATIENCE_SECONDS = 30


class MortalDriver(Driver):
    """A driver that is started often and dies each time; see `lab.killed`."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, {"pools": [{"name": "main", "vgs": ["vg0"]}]})
        python, flag, _, *rest = self.argv()
        self._supervisor = node.spawn([python, flag, "lab.killed", self._folder, *rest], self.log)

    def start_until(self, moment: str) -> None:
        """Start it; it dies at `moment`."""
        self.node.run(["rm", "-f", f"{self._folder}/pid", f"{self._folder}/ended"])
        self.node.write(f"{self._folder}/start.new", moment.encode())
        self.node.run(["mv", f"{self._folder}/start.new", f"{self._folder}/start"])
        self.node.call("lab.inside:wait_for", path=f"{self._folder}/pid")
        self.node.call("lab.csi_calls:ready", socket=self.socket)

    def kill_now(self) -> None:
        """kill -9 between two calls."""
        pid = self.node.read(f"{self._folder}/pid").decode()
        self.node.run(["kill", f"-{int(signal.SIGKILL)}", pid])

    def ended(self) -> int:
        """Exit status of the last one."""
        self.node.call("lab.inside:wait_for", path=f"{self._folder}/ended", timeout=30)
        self._forget()
        return int(self.node.read(f"{self._folder}/ended"))

    def retire(self) -> None:
        """End the supervisor."""
        self.node.kill(self._supervisor)
        self.node.wait(self._supervisor)


@pytest.fixture(scope="module")
def mortal(node: Node) -> Iterator[MortalDriver]:
    made = MortalDriver(node)
    yield made
    made.retire()


def _die_at_every_moment(
    mortal: MortalDriver, heir: Driver, prepare: Callable[[Driver], None], call: Callable[[Driver], Answer]
) -> Iterator[str]:
    """Kill in step 1, 2, ... until the call gets through; after each death another process repeats the call."""
    for number in range(_MOMENTS):
        moment = f"{number}:during" if number else "1:before"
        prepare(heir)
        mortal.start_until(moment)
        answer = call(mortal)
        alive = answer.code == "OK"
        if alive:
            assert number > 1, "the call carried out no step at all"
            mortal.kill_now()
        assert mortal.ended() == -signal.SIGKILL, f"the driver did not die at {moment}: {answer}"
        _repeat(heir, call)
        yield "the end" if alive else moment
        if alive:
            return
    raise AssertionError("the call never got through")


def _repeat(heir: Driver, call: Callable[[Driver], Answer]) -> None:
    """As kubelet does, until it succeeds: a program that the dead driver had started may hold the volume for a moment."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    answer = call(heir)
    while answer.code != "OK" and time.monotonic() < give_up:
        time.sleep(0.5)
        answer = call(heir)
    answer.ok()


def _make(driver: Driver, **parameters: str) -> None:
    driver.create("pvc-kill", 64 * MIB, _CAPABILITY, **parameters).ok()


def _show(driver: Driver, **parameters: str) -> Answer:
    volume = {"volume_id": "pvc-kill", "volume_context": parameters}
    staged = driver.stage(volume, _CAPABILITY)
    return driver.publish(volume, _CAPABILITY) if staged.code == "OK" else staged


def _clean(driver: Driver) -> None:
    driver.unpublish("pvc-kill").ok()
    driver.unstage("pvc-kill").ok()
    driver.delete("pvc-kill").ok()
    assert "pvc-kill" not in lvs(driver.node)
    assert mounts_below(driver.node) == []
    assert driver.node.listing(REGISTRY) == []


def test_create_killed_anywhere_leaves_one_volume(mortal: MortalDriver, driver: Driver) -> None:
    def call(to: Driver) -> Answer:
        return to.create("pvc-kill", 64 * MIB, _CAPABILITY)

    moments = []
    for moment in _die_at_every_moment(mortal, driver, lambda _: None, call):
        moments.append(moment)
        assert lvs(driver.node).count("pvc-kill") == 1
        _clean(driver)
    print("killed at:", *moments)


@pytest.mark.parametrize("kind", ["plain", "direct"])
def test_stage_and_publish_killed_anywhere_show_the_volume(mortal: MortalDriver, driver: Driver, kind: str) -> None:
    parameters = {"wipe": "none"} | ({"direct": "true"} if kind == "direct" else {})
    target = driver.target_path("pvc-kill")
    moments = []
    for moment in _die_at_every_moment(
        mortal, driver, lambda to: _make(to, **parameters), lambda to: _show(to, **parameters)
    ):
        moments.append(moment)
        wrote = driver.node.run(["touch", f"{target}/file"], check=False)
        if kind == "direct":
            assert b"Read-only file system" in wrote.stderr
            assert len(driver.node.listing(REGISTRY)) == 1
        else:
            assert wrote.rc == 0
        assert mounts_below(driver.node).count(target) == 1
        _clean(driver)
    print("killed at:", *moments)


def test_delete_killed_anywhere_ends_wiped_and_gone(mortal: MortalDriver, driver: Driver) -> None:
    place = ("", 0, 0)

    def prepare(to: Driver) -> None:
        nonlocal place
        _make(to)
        _show(to).ok()
        to.node.write(to.target_path("pvc-kill") + "/file", _CONTENT * 1000)
        place = extents(to.node, "vg0/pvc-kill")
        to.unpublish("pvc-kill").ok()
        to.unstage("pvc-kill").ok()
        assert _blocks_left(to.node, place) > 0

    moments = []
    for moment in _die_at_every_moment(mortal, driver, prepare, lambda to: to.delete("pvc-kill")):
        moments.append(moment)
        assert "pvc-kill" not in lvs(driver.node)
        assert _blocks_left(driver.node, place) == 0, f"killed at {moment}, content is left on the disk"
    print("killed at:", *moments)


def _blocks_left(node: Node, place: tuple[str, int, int]) -> int:
    device, offset, length = place
    return int(node.call("lab.story:count_written", device=device, offset=offset, length=length))
