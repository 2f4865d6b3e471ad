"""kill -9 of the real driver around every step of create, stage, publish and delete: the repeated call ends the same."""

from collections.abc import Callable, Iterator

import pytest

from tests.lab.driver import MIB, REGISTRY, Answer, Driver, lvs, mount_capability, mounts_below
from tests.lab.node import Node

pytestmark = pytest.mark.lab

_CAPABILITY = mount_capability("ext4", "SINGLE_NODE_SINGLE_WRITER")
_MOMENTS = 40


@pytest.fixture(scope="module")
def drivers(node: Node) -> Iterator[tuple[Driver, Driver]]:
    """A driver that dies, and one that takes over on the same node."""
    config = {"pools": [{"name": "main", "vgs": ["vg0"]}]}
    yield Driver(node, config), Driver(node, config)


def _die_at_every_moment(
    drivers: tuple[Driver, Driver], prepare: Callable[[Driver], None], call: Callable[[Driver], Answer]
) -> Iterator[tuple[str, Driver]]:
    """Kill around step 1, 2, ... until the call gets through; after each death the other driver repeats the call."""
    dying, healthy = drivers
    healthy.start()
    for number in range(_MOMENTS):
        moment = f"{number // 2 + 1}:{'after' if number % 2 else 'before'}"
        prepare(healthy)
        dying.start("tests.lab.killed", {"KILL_AT": moment})
        answer = call(dying)
        if answer.code == "OK":
            dying.kill()
            assert number > 0, "the call carried out no step at all"
            yield "alive", healthy
            healthy.stop()
            return
        assert dying.died() == -9, f"the driver did not die at {moment}: {answer}"
        call(healthy).ok()
        yield moment, healthy
    raise AssertionError("the call never got through")


def _volume(driver: Driver, **parameters: str) -> dict[str, object]:
    return dict(driver.create("pvc-kill", 64 * MIB, _CAPABILITY, **parameters).ok()["volume"])


def _clean(driver: Driver) -> None:
    driver.unpublish("pvc-kill").ok()
    driver.unstage("pvc-kill").ok()
    driver.delete("pvc-kill").ok()
    assert "pvc-kill" not in lvs(driver.node)
    assert mounts_below(driver.node) == []
    assert driver.node.listing(REGISTRY) == []


def test_create_killed_anywhere_leaves_one_volume(drivers: tuple[Driver, Driver]) -> None:
    moments = []
    for moment, driver in _die_at_every_moment(
        drivers, lambda _: None, lambda d: d.create("pvc-kill", 64 * MIB, _CAPABILITY)
    ):
        moments.append(moment)
        assert lvs(driver.node).count("pvc-kill") == 1
        _clean(driver)
    print("killed at:", *moments)


@pytest.mark.parametrize("kind", ["plain", "direct"])
def test_stage_and_publish_killed_anywhere_show_the_volume(drivers: tuple[Driver, Driver], kind: str) -> None:
    parameters = {"direct": "true"} if kind == "direct" else {}

    def prepare(driver: Driver) -> None:
        _volume(driver, **parameters)

    def call(driver: Driver) -> Answer:
        volume = {"volume_id": "pvc-kill", "volume_context": parameters}
        staged = driver.stage(volume, _CAPABILITY)
        return driver.publish(volume, _CAPABILITY) if staged.code == "OK" else staged

    moments = []
    for moment, driver in _die_at_every_moment(drivers, prepare, call):
        moments.append(moment)
        target = driver.target_path("pvc-kill")
        wrote = driver.node.run(["touch", f"{target}/file"], check=False)
        if kind == "direct":
            assert b"Read-only file system" in wrote.stderr
            assert len(driver.node.listing(REGISTRY)) == 1
        else:
            assert wrote.rc == 0
        assert len([path for path in mounts_below(driver.node) if path == target]) == 1
        _clean(driver)
    print("killed at:", *moments)


def test_delete_killed_anywhere_ends_wiped_and_gone(drivers: tuple[Driver, Driver], node: Node) -> None:
    def prepare(driver: Driver) -> None:
        volume = _volume(driver)
        driver.stage(volume, _CAPABILITY).ok()
        driver.publish(volume, _CAPABILITY).ok()
        driver.node.write(driver.target_path("pvc-kill") + "/file", b"to be wiped" * 1000)
        driver.unpublish("pvc-kill").ok()
        driver.unstage("pvc-kill").ok()

    moments = []
    for moment, driver in _die_at_every_moment(drivers, prepare, lambda d: d.delete("pvc-kill")):
        moments.append(moment)
        assert "pvc-kill" not in lvs(driver.node)
        found = node.run(["sh", "-c", f"cat {' '.join(node.disks)} | grep -c -a 'to be wipedto be wiped'"], check=False)
        assert found.text.strip() == "0", f"killed at {moment}, the content is still on the disk"
    print("killed at:", *moments)
