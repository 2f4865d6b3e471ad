"""Disks that die under the driver: every call ends with words that name volume, disk and remedy; other groups are served
meanwhile; and when the disk is well again everything goes on without a restart.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from lab.driver import MIB, Answer, Driver, block_capability, lvs, mount_capability, mounts_below, until_ok
from lab.faults import FaultyDisk, Part
from lab.node import Node

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

_MOUNT, _BLOCK = mount_capability("ext4"), block_capability()
_SIZE = 32 * MIB
_MARK = b"what a tenant wrote before the disk was pulled"
_SERVED_SECONDS = 2.0
_WAITED_SECONDS = 15.0
"""Longer than a slow node needs with seven calls at once, shorter than anything that waits for the disk."""
_LIFE = ("create", "stage", "publish", "unpublish", "unstage", "delete")
_HANGS_SECONDS = 40.0
_REPEAT_SECONDS = 20.0

_NOT_AN_ANSWER = ("INTERNAL", "UNKNOWN", "NOT_FOUND")
"""INTERNAL names nothing; a volume whose disk can't be read is not "not found", which would end its deletion well."""
_REMEDY = re.compile(
    r"\b(repeat|again|wait|look at|mend|replace|remove|check|plug|restore|bring|take|free|delete|retried|see)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class World:
    """A node with a group on a disk that can die, a group on a good one, and one driver for both."""

    node: Node
    disk: FaultyDisk
    driver: Driver
    usual: dict[str, float]
    """Seconds that each call of a life takes on the good group while nothing is wrong."""


@pytest.fixture(scope="module")
def world(node_kind: type[Node]) -> Iterator[World]:
    with node_kind((1024 * MIB, 256 * MIB)) as node:
        disk = FaultyDisk(node=node, name="dying", below=node.disks[0])
        pools = [
            {"name": "dying", "vgs": ["vgdying"], "devices": [disk.path]},
            {"name": "well", "vgs": ["vgwell"], "devices": [node.disks[1]]},
        ]
        driver = Driver(node, {"pools": pools})
        driver.start()
        yield World(node=node, disk=disk, driver=driver, usual=_life(driver, "pvc-usual"))
        assert driver.stop() == 0


def _life(driver: Driver, name: str) -> dict[str, float]:
    """A whole life on the good group; seconds of each call."""
    volume = {"volume_id": name}
    calls: dict[str, Callable[[], Answer]] = {
        "create": lambda: driver.create(name, _SIZE, _MOUNT, pool="well"),
        "stage": lambda: driver.stage(volume, _MOUNT),
        "publish": lambda: driver.publish(volume, _MOUNT),
        "unpublish": lambda: driver.unpublish(name),
        "unstage": lambda: driver.unstage(name),
        "delete": lambda: driver.delete(name),
    }
    took = {}
    for call in _LIFE:
        answer = calls[call]()
        answer.ok()
        took[call] = answer.seconds
    return took


class Victims:
    """Volumes on the dying disk, each at the point where one call is next, and that call. Their names end in `suffix`."""

    def __init__(self, driver: Driver, suffix: str) -> None:
        self._driver = driver
        self.suffix = suffix
        self.mark = f"what a tenant wrote before the disk died ({suffix})"
        self.calls: dict[str, Callable[[Driver], Answer]] = {
            self._name("created"): lambda by: by.create(self._name("created"), _SIZE, _MOUNT, pool="dying"),
            self._name("staged"): lambda by: by.stage({"volume_id": self._name("staged")}, _MOUNT),
            self._name("cleared"): lambda by: by.stage({"volume_id": self._name("cleared")}, _BLOCK),
            self._name("restaged"): lambda by: by.stage({"volume_id": self._name("restaged")}, _MOUNT),
            self._name("unstaged"): lambda by: by.unstage(self._name("unstaged")),
            self._name("wiped"): lambda by: by.delete(self._name("wiped")),
        }

    def _name(self, call: str) -> str:
        return f"pvc-{call}-{self.suffix}"

    def prepare(self) -> None:
        """All but the first are there, the later three were used."""
        for call in ("staged", "cleared", "restaged", "unstaged", "wiped"):
            capability = _BLOCK if call == "cleared" else _MOUNT
            self._driver.create(self._name(call), _SIZE, capability, pool="dying").ok()
        for name in map(self._name, ("restaged", "unstaged", "wiped")):
            self._driver.stage({"volume_id": name}, _MOUNT).ok()
            self._driver.node.write(f"{self._driver.staging_path(name)}/file", self.mark.encode() * 100)
            if name != self._name("unstaged"):
                self._driver.unstage(name).ok()

    def remove(self) -> None:
        """Unstage and delete what is left, now that the disk is well."""
        for name in self.calls:
            until_ok(lambda name=name: self._driver.unstage(name), f"unstage of {name}")  # type: ignore[misc]
            until_ok(lambda name=name: self._driver.delete(name), f"deletion of {name}")  # type: ignore[misc]


FAULTS: dict[str, Callable[[FaultyDisk], None]] = {
    "reads of data fail": lambda disk: disk.fail_reads(),
    "writes of data fail": lambda disk: disk.fail_writes(),
    "data does not answer": lambda disk: disk.freeze(),
    "all reads fail": lambda disk: disk.fail_reads(Part.WHOLE),
    "all writes fail": lambda disk: disk.fail_writes(Part.WHOLE),
    "nothing is answered": lambda disk: disk.freeze(Part.WHOLE),
    "it is suspended": lambda disk: disk.suspend(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_calls_on_a_dying_disk_are_named_others_are_served_and_it_recovers(world: World, fault: str) -> None:
    driver, disk = world.driver, world.disk
    victims = Victims(driver, str(tuple(FAULTS).index(fault)))
    victims.prepare()
    FAULTS[fault](disk)
    try:
        with ThreadPoolExecutor(2 * len(victims.calls)) as pool:
            first = {name: pool.submit(call, driver.patient(_HANGS_SECONDS)) for name, call in victims.calls.items()}
            served = _life(driver, f"pvc-well-{victims.suffix}")
            repeated = {
                name: pool.submit(call, driver.patient(_REPEAT_SECONDS)) for name, call in victims.calls.items()
            }
            again = _answers(repeated)
            hung = [name for name, answer in first.items() if not answer.done()]
            disk.heal()
            ended = _answers(first)
    finally:
        disk.heal()
    print(f"{fault}: others at most {max(served.values()):.2f} s of {_SERVED_SECONDS:g}; hung: {hung}")
    _require_served(world, served)
    _require_named(ended, again)
    for name, call in victims.calls.items():
        until_ok(lambda call=call: call(driver), name)  # type: ignore[misc]
    victims.remove()
    _require_nothing_left(world, victims.calls, victims.mark)


def _answers(calls: dict[str, Future[Answer]]) -> dict[str, Answer]:
    return {name: answer.result() for name, answer in calls.items()}


def _require_served(world: World, served: dict[str, float]) -> None:
    late = {call: seconds for call, seconds in served.items() if seconds > _WAITED_SECONDS}
    assert not late, f"calls of the other group waited for the dying disk: {late}, usually {world.usual}"


def _require_named(first: dict[str, Answer], again: dict[str, Answer]) -> None:
    wrong = []
    for name, answered in first.items():
        for answer in (answered, again[name]):
            if answer.code == "OK":
                continue
            print(f"  {name}: {answer.code}: {answer.message}")
            if not _is_named(name, answer):
                wrong.append(f"{name}: {answer.code}: {answer.message}")
        # Whoever waits in vain learns why when it asks once more.
        if again[name].message == "Deadline Exceeded":
            wrong.append(f"{name}: asked again, no answer in {_REPEAT_SECONDS:g} s")
    assert not wrong, "\n".join(wrong)


def _is_named(name: str, answer: Answer) -> bool:
    """Whether the answer says what is wrong, with which volume and disk or group, and what to do."""
    if answer.message == "Deadline Exceeded":
        return True
    place = name in answer.message, "vgdying" in answer.message or "/dev/" in answer.message
    # An order to wait for another call of the same volume needs no disk; to make a volume needs no volume.
    enough = place[0] if answer.code == "ABORTED" else any(place) if name.startswith("pvc-created") else all(place)
    return answer.code not in _NOT_AN_ANSWER and enough and _REMEDY.search(answer.message) is not None


def _require_nothing_left(world: World, names: Iterable[str], mark: str) -> None:
    assert not set(names) & set(lvs(world.node))
    assert not [target for target in mounts_below(world.node) if any(name in target for name in names)]
    search = world.node.run(["grep", "-c", "-a", "-F", mark, world.disk.path], check=False)
    assert search.text.strip() == "0", "what a tenant wrote is still on the disk"


def test_a_bad_sector_in_a_wipe_is_named_and_the_volume_can_be_deleted_when_the_disk_is_replaced(world: World) -> None:
    driver, disk, name = world.driver, world.disk, "pvc-sector"
    driver.create(name, _SIZE, _MOUNT, pool="dying").ok()
    driver.stage({"volume_id": name}, _MOUNT).ok()
    driver.unstage(name).ok()
    start = int(
        world.node.run(["lvs", "--noheadings", "-o", "seg_pe_ranges", f"vgdying/{name}"])
        .text.split(":")[1]
        .split("-")[0]
    )
    disk.spoil((1 + 4 * start + 16) * MIB)
    try:
        answers = [driver.patient(_REPEAT_SECONDS).delete(name) for _ in range(2)]
    finally:
        disk.heal()
    for answer in answers:
        print(f"{answer.code}: {answer.message}")
        assert answer.code != "OK"
        assert _is_named(name, answer), answer
    until_ok(lambda: driver.delete(name), name)
    assert name not in lvs(world.node)


def test_a_disk_that_is_pulled_lets_go_of_its_volumes_and_serves_them_when_it_is_back(world: World) -> None:
    driver, disk, node = world.driver, world.disk, world.node
    xfs, sealed = mount_capability("xfs"), {"sealed": "xts"}
    kept = driver.create("pvc-kept", 320 * MIB, xfs, pool="dying").ok()["volume"]
    guest = driver.create("pvc-guest", _SIZE, _MOUNT, pool="dying", **sealed).ok()["volume"]
    driver.stage(kept, xfs).ok()
    driver.publish(kept, xfs).ok()
    node.write(driver.target_path("pvc-kept") + "/file", _MARK)
    node.run(["sync"])
    driver.stage(guest, _MOUNT).ok()
    driver.publish(guest, _MOUNT).ok()
    disk.vanish()
    _life(driver, "pvc-well-gone")
    for name in ("pvc-kept", "pvc-guest"):
        driver.unpublish(name).ok()
        unstaged = driver.unstage(name)
        assert unstaged.code == "OK" or _is_named(name, unstaged), unstaged
    assert mounts_below(node) == []
    gone = driver.patient(_REPEAT_SECONDS).delete("pvc-guest")
    assert gone.code != "OK"
    assert _is_named("pvc-guest", gone), gone
    disk.come_back()
    for volume, capability in ((kept, xfs), (guest, _MOUNT)):
        until_ok(lambda: driver.unstage(volume["volume_id"]), "unstage")  # noqa: B023
        until_ok(lambda: driver.stage(volume, capability), "stage")  # noqa: B023
        driver.publish(volume, capability).ok()
    assert node.read(driver.target_path("pvc-kept") + "/file") == _MARK
    assert node.read("/dev/vgdying/pvc-guest", 0, 512) == bytes(512), "a dead mapping is not published"
    for name in ("pvc-kept", "pvc-guest"):
        driver.unpublish(name).ok()
        driver.unstage(name).ok()
        until_ok(lambda: driver.delete(name), name)  # noqa: B023
    _require_nothing_left(world, ("pvc-kept", "pvc-guest"), _MARK.decode())
