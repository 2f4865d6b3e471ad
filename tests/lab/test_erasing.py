"""Nothing of one tenant reaches another by what is left on a disk, and a wipe has an end that somebody can reach: on a real
disk, with what an operator does beside the driver, with a bad sector, and with a kill in the middle.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.driver import MIB, Answer, Driver, block_capability, lvs, mount_capability
from lab.faults import FaultyDisk
from lab.node import Node, wait_until
from lab.story import extents

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

_MOUNT, _BLOCK = mount_capability("ext4"), block_capability()
_TEXT = b"what another tenant wrote, and nobody else may read\n"
_SIZE = 128 * MIB
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class World:
    """A node with one group on a disk that can be spoilt, and its driver."""

    node: Node
    disk: FaultyDisk
    driver: Driver

    def call_until_ok(self, call: Callable[[], Answer]) -> Answer:
        """As kubelet and the provisioner do: again while a job goes on. Anything but ABORTED is an answer."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        answer = call()
        while answer.code == "ABORTED" and time.monotonic() < give_up:
            time.sleep(0.5)
            answer = call()
        answer.ok()
        return answer

    def use(self, name: str, size: int = _SIZE, **parameters: str) -> tuple[str, int, int]:
        """A volume full of a tenant's text, no longer staged; answers where it lies."""
        volume = {"volume_id": name, "volume_context": parameters}
        self.driver.create(name, size, _MOUNT, **parameters).ok()
        self.driver.stage(volume, _MOUNT).ok()
        path = self.driver.staging_path(name)
        mark = _TEXT.decode().strip()
        self.node.run(
            ["sh", "-c", f"yes '{mark}' | dd of={path}/text bs=1M oflag=direct status=none; sync"], check=False
        )
        place = extents(self.node, f"vg0/{name}")
        self.driver.unstage(name).ok()
        return place

    def delete(self, name: str) -> Answer:
        """DeleteVolume to its end."""
        return self.call_until_ok(lambda: self.driver.delete(name))

    def lines(self, device: str, offset: int = 0, length: int = _SIZE) -> int:
        """How many lines of the other tenant's text a device shows in a range."""
        mark = _TEXT.decode().strip()
        shown = f"dd if={device} bs=1M skip={offset // MIB} count={length // MIB} iflag=direct status=none"
        return int(self.node.run(["sh", "-c", f"{shown} | grep -c -a '{mark}' || true"]).text)

    def written(self, place: tuple[str, int, int]) -> int:
        """Blocks of 4 KiB that hold anything but zeroes."""
        device, offset, length = place
        return int(self.node.call("lab.story:count_written", device=device, offset=offset, length=length))


@pytest.fixture(scope="module")
def world(node_kind: type[Node]) -> Iterator[World]:
    with node_kind((2048 * MIB, 64 * MIB)) as node:
        disk = FaultyDisk(node=node, name="worn", below=node.disks[0])
        # Other groups may be named, so LVM looks at other disks, too: an operator extends the group by one.
        other: dict[str, Any] = {"vgs": {"include": ["other"]}}
        pools = [{"name": "main", "vgs": ["vg0"], "devices": [disk.path]}]
        driver = Driver(node, {"pools": pools, "listConfig": other})
        driver.start()
        groups = node.run(["vgs", "--noheadings", "-o", "vg_name"]).text.split()
        assert groups == ["vg0"], node.read(driver.log).decode()[-4000:]
        yield World(node=node, disk=disk, driver=driver)
        driver.kill()


@pytest.mark.parametrize(
    ("capability", "parameters"),
    [(_BLOCK, {"sealed": "xts"}), (_MOUNT, {"sealed": "xts"}), (_MOUNT, {"direct": "true"}), (_BLOCK, {})],
    ids=["sealed block", "sealed", "direct", "block"],
)
def test_whoever_sees_the_raw_device_sees_nothing_of_before(
    world: World, capability: dict[str, Any], parameters: dict[str, str]
) -> None:
    # A class that wipes nothing leaves all of its text on the disk, where the next volume of the same size goes.
    before = world.use("pvc-first", wipe="none")
    world.delete("pvc-first")
    assert world.lines(*before) > 1_000_000
    size = _SIZE - 34 * MIB if "sealed" in parameters else _SIZE
    volume = {"volume_id": "pvc-second", "volume_context": parameters}
    world.driver.create("pvc-second", size, capability, **parameters).ok()
    assert extents(world.node, "vg0/pvc-second") == before, "the second volume lies elsewhere: nothing is tried"
    world.call_until_ok(lambda: world.driver.stage(volume, capability))
    assert world.lines("/dev/vg0/pvc-second") == 0
    if "direct" not in parameters:
        assert world.written(before) == 0
    world.driver.unstage("pvc-second").ok()
    world.delete("pvc-second")


def test_what_a_deletion_has_zeroed_is_read_and_not_written_again(world: World) -> None:
    world.disk.forget_zeroing()
    place = world.use("pvc-first")
    world.delete("pvc-first")
    assert world.written(place) == 0
    written = _sectors_written(world)
    world.driver.create("pvc-second", _SIZE, _BLOCK).ok()
    took = world.call_until_ok(lambda: world.driver.stage({"volume_id": "pvc-second"}, _BLOCK)).seconds
    again = _sectors_written(world) - written
    print(f"cleared {_SIZE // MIB} MiB that were zero in {took:.2f} s with {again * 512 // 1024} KiB written")
    assert again * 512 < 4 * MIB
    world.driver.unstage("pvc-second").ok()
    world.delete("pvc-second")
    world.disk.heal()


def test_a_snapshot_of_an_operator_keeps_its_volume_and_is_named(world: World) -> None:
    world.use("pvc-copied")
    world.node.run(["lvcreate", "-q", "--snapshot", "--size", "64m", "--name", "backup", "vg0/pvc-copied"])
    for _ in range(2):
        refused = world.driver.delete("pvc-copied")
        assert refused.code == "FAILED_PRECONDITION"
        assert "vg0/backup" in refused.message
    assert {"pvc-copied", "backup"} <= set(lvs(world.node))
    tags = world.node.run(["lvs", "--noheadings", "-o", "lv_tags", "vg0/pvc-copied"]).text
    assert "sl:state=ready" in tags, "a volume whose deletion was refused is no longer usable"
    world.node.run(["lvremove", "-q", "--yes", "vg0/backup"])
    world.delete("pvc-copied")
    assert "pvc-copied" not in lvs(world.node)


def test_a_volume_that_lvm_moves_is_not_deleted_meanwhile(world: World) -> None:
    world.node.run(["modprobe", "dm-mirror"], check=False)
    world.use("pvc-moved", 32 * MIB)
    device, _, _ = extents(world.node, "vg0/pvc-moved")
    world.node.run(["vgextend", "-q", "--yes", "vg0", world.node.disks[1]])
    # With + the first look at whether it has ended comes after ten minutes: so long LVM counts it as moving.
    moving = ["pvmove", "--background", "--interval", "+600", "--name", "pvc-moved", device, world.node.disks[1]]
    world.node.run(moving)
    refused = world.driver.delete("pvc-moved")
    assert refused.code == "FAILED_PRECONDITION", refused
    assert "pvmove --abort" in refused.message
    world.node.run(["pvmove", "--abort"])
    world.delete("pvc-moved")
    world.node.run(["vgreduce", "-q", "vg0", world.node.disks[1]])


def test_a_bad_sector_in_a_wipe_is_named_and_a_person_can_end_it(world: World) -> None:
    _, offset, _ = world.use("pvc-worn")
    world.disk.spoil(offset + 100 * MIB)
    try:
        for _ in range(2):
            refused = world.driver.delete("pvc-worn")
            assert refused.code == "FAILED_PRECONDITION", refused
            for word in ("pvc-worn", "/dev/vg0/pvc-worn", "Input/output error", "sl:abandon-wipe"):
                assert word in refused.message
        assert "pvc-worn" in lvs(world.node)
        world.node.run(["lvchange", "-q", "--addtag", "sl:abandon-wipe", "vg0/pvc-worn"])
        world.delete("pvc-worn")
        assert "pvc-worn" not in lvs(world.node)
    finally:
        world.disk.heal()


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
@pytest.mark.parametrize("cut", [False, True], ids=["unstaged", "power cut"])
def test_a_restored_backup_of_the_metadata_does_not_format_living_data(world: World, fstype: str, cut: bool) -> None:
    name, capability = f"pvc-{fstype}", mount_capability(fstype)
    volume = {"volume_id": name}
    world.driver.create(name, 320 * MIB, capability).ok()
    world.node.run(["vgcfgbackup", "-q", "--file", "/tmp/backup", "vg0"])
    world.driver.stage(volume, capability).ok()
    path = world.driver.staging_path(name)
    world.node.write(f"{path}/file", _TEXT)
    world.node.run(["sync"])
    shown = world.node.run(["dd", f"if=/dev/vg0/{name}", "of=/tmp/as-cut", "bs=1M", "iflag=direct"]) if cut else None
    world.driver.unstage(name).ok()
    if shown is not None:
        # What the disk holds when the power goes: a log that nobody has closed.
        world.node.run(["lvchange", "-q", "--activate", "y", f"vg0/{name}"])
        world.node.run(["dd", "if=/tmp/as-cut", f"of=/dev/vg0/{name}", "bs=1M", "oflag=direct"])
        world.node.run(["lvchange", "-q", "--activate", "n", f"vg0/{name}"])
        world.node.run(["rm", "/tmp/as-cut"])
    world.node.run(["vgcfgrestore", "-q", "--yes", "--file", "/tmp/backup", "vg0"])
    refused = world.driver.stage(volume, capability)
    assert refused.code == "FAILED_PRECONDITION", refused
    assert "vgcfgrestore" in refused.message
    world.driver.unstage(name).ok()
    # As docs/node.md says for whoever wants the data.
    tags = ["--deltag", "sl:state=creating", "--addtag", "sl:state=ready", "--addtag", f"sl:formatted={fstype}"]
    world.node.run(["lvchange", "-q", *tags, f"vg0/{name}"])
    world.driver.stage(volume, capability).ok()
    assert world.node.read(f"{path}/file") == _TEXT
    world.driver.unstage(name).ok()
    world.delete(name)


def test_a_wipe_that_was_killed_goes_on_at_the_next_start_without_a_caller(world: World) -> None:
    place = world.use("pvc-large", 1024 * MIB)
    world.disk.freeze()
    world.node.call("lab.csi_calls:call", socket=world.driver.socket, method="DeleteVolume", **_soon("pvc-large"))
    world.node.kill(world.driver.pid)
    # A thread that waits for its disk dies when the disk answers.
    world.disk.heal()
    world.driver.died()
    assert "pvc-large" in lvs(world.node), "the wipe was over before the kill"
    world.driver.start()
    wait_until("the deletion", _PATIENCE_SECONDS, lambda: "pvc-large" not in lvs(world.node))
    assert world.written(place) == 0
    assert "deletion goes on" in world.node.read(world.driver.log).decode()
    world.driver.delete("pvc-large").ok()


def _soon(name: str) -> dict[str, Any]:
    return {"request": {"volume_id": name}, "timeout": 5.0}


def _sectors_written(world: World) -> int:
    """Of the disk below the group (proc-diskstats(5), field 7)."""
    name = world.node.disks[0].rpartition("/")[2]
    return int(world.node.read(f"/sys/class/block/{name}/stat").decode().split()[6])
