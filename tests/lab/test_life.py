"""One volume's life on real LVM: every kind of volume, every call twice, and nothing left at the end."""

from typing import Any

import pytest

from lab.driver import MIB, REGISTRY, Driver, block_capability, lvs, mount_capability, mounts_below

pytestmark = pytest.mark.lab

KINDS: dict[str, tuple[dict[str, Any], dict[str, str], int]] = {
    "ext4": (mount_capability("ext4"), {}, 64 * MIB),
    "xfs": (mount_capability("xfs"), {}, 320 * MIB),
    "striped": (mount_capability(), {"lvmType": "striping"}, 64 * MIB),
    "block": (block_capability(), {}, 64 * MIB),
    "direct": (mount_capability(), {"direct": "true"}, 64 * MIB),
    "sealed": (mount_capability(), {"sealed": "xts"}, 64 * MIB),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_lives_from_create_to_delete_and_every_call_can_be_repeated(driver: Driver, kind: str) -> None:
    capability, parameters, size = KINDS[kind]
    name = f"pvc-life-{kind}"
    volume = driver.create(name, size, capability, **parameters).ok()["volume"]
    assert driver.create(name, size, capability, **parameters).ok()["volume"] == volume
    assert int(volume["capacity_bytes"]) == size
    for _ in range(2):
        driver.stage(volume, capability).ok()
    for _ in range(2):
        driver.publish(volume, capability).ok()
    target = driver.target_path(name)
    assert _shown_as(driver, target) == {"block": "device", "direct": "tombstone", "sealed": "tombstone"}.get(
        kind, "mount"
    )
    assert driver.delete(name).code == "FAILED_PRECONDITION"
    assert driver.unstage(name).code == "FAILED_PRECONDITION"
    for _ in range(2):
        driver.unpublish(name).ok()
    for _ in range(2):
        driver.unstage(name).ok()
    driver.deleted(name)
    driver.delete(name).ok()
    assert name not in lvs(driver.node)
    assert mounts_below(driver.node) == []
    assert driver.node.listing(REGISTRY) == []
    assert not driver.node.exists(target)


def _shown_as(driver: Driver, target: str) -> str:
    """What a pod would find at the target: proved by writing to it."""
    if driver.node.run(["test", "-b", target], check=False).rc == 0:
        return "device"
    wrote = driver.node.run(["touch", f"{target}/file"], check=False)
    if wrote.rc == 0:
        return "mount"
    assert b"Read-only file system" in wrote.stderr
    return "tombstone"


def test_what_a_pod_wrote_is_there_after_restage_and_after_a_power_cut(new_node: Any) -> None:
    node = new_node((256 * MIB,))
    node.run(["vgcreate", "-q", "vg0", *node.disks])
    driver = Driver(node, {"pools": [{"name": "main", "vgs": ["vg0"]}]})
    driver.start()
    capability = mount_capability()
    volume = driver.create("pvc-keep", 64 * MIB, capability).ok()["volume"]
    driver.stage(volume, capability).ok()
    driver.publish(volume, capability).ok()
    node.write(driver.target_path("pvc-keep") + "/file", b"kept")
    node.crash()
    node.boot()
    after = Driver(node, {"pools": [{"name": "main", "vgs": ["vg0"]}]})
    after.start()
    after.stage(volume, capability).ok()
    after.publish(volume, capability).ok()
    assert node.read(after.target_path("pvc-keep") + "/file") == b"kept"
    assert after.stop() == 0
