"""A start on a real node: what is late or missing is tried again, wrong mounts are refused, and the host's udev and boot
leave tenants' volumes alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from lab.driver import MIB, REGISTRY, Driver, block_capability, mount_capability, mounts_below
from lab.node import REPOSITORY, Node, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

_MOUNT, _BLOCK = mount_capability("ext4"), block_capability()
_SIZE = 32 * MIB
_SOON = 60.0
_LABEL, _UUID = "host-data", "5d1f7a44-2f0c-4c1b-9d6e-000000000014"
_GUEST_RULE = REPOSITORY / "deploy/guest-image/59-sealed-local-guest.rules"


class Contained(Driver):
    """The driver with mounts of its own, as a container has them."""

    def __init__(self, node: Node, config: Mapping[str, Any], *wrapper: str) -> None:
        super().__init__(node, config)
        self._wrapper = wrapper

    def argv(self, module: str = "csi") -> list[str]:
        return [*self._wrapper, *super().argv(module)]

    def begin(self) -> None:
        """Start it without waiting for it to be ready."""
        self.adopt(self.node.spawn(self.argv(), self.log))


def contained(node: Node, config: Mapping[str, Any], propagation: str, *prepare: str) -> Contained:
    """`prepare` are shell lines that are carried out in the container's mounts first."""
    script = " && ".join([*prepare, 'exec "$@"'])
    return Contained(node, config, "unshare", "--mount", "--propagation", propagation, "sh", "-c", script, "sh")


@pytest.fixture(scope="module")
def node(node_kind: type[Node]) -> Iterator[Node]:
    with node_kind((256 * MIB, 256 * MIB, 128 * MIB, 64 * MIB)) as booted:
        yield booted


def _pools(node: Node) -> dict[str, Any]:
    return {"pools": [{"name": "main", "vgs": ["vgmain"], "devices": [node.disks[0]]}]}


def _not_ready(driver: Driver) -> str:
    """What Probe says, once it says that the driver can't work."""
    try:
        return str(wait_until("Probe refuses", _SOON, lambda: _refusal(driver)))
    except AssertionError:
        print(driver.call("Probe"), driver.node.read(driver.log).decode()[-4000:])
        raise


def _refusal(driver: Driver) -> str | None:
    answer = driver.call("Probe")
    return answer.message if answer.code == "FAILED_PRECONDITION" else None


def _ready(driver: Driver) -> bool:
    answer = driver.call("Probe")
    return answer.code == "OK" and bool(answer.response.get("ready"))


def test_lvm_that_is_missing_at_the_start_is_found_when_it_comes(node: Node) -> None:
    lvm = node.run(["sh", "-c", "readlink -f $(command -v lvm)"]).text.strip()
    node.run(["mv", lvm, f"{lvm}.away"])
    driver = contained(node, _pools(node), "unchanged")
    try:
        driver.begin()
        assert "install the package" in _not_ready(driver)
    finally:
        node.run(["mv", f"{lvm}.away", lvm])
    wait_until("ready", _SOON, lambda: _ready(driver))
    driver.create("pvc-a", _SIZE, _MOUNT).ok()
    driver.delete("pvc-a").ok()
    assert driver.stop() == 0


def _partition(node: Node, disk: str, kind: int) -> str:
    """One partition of a type from 1 MiB on, by a table as any tool writes it; answers its device."""
    entry = bytes([0, 0, 2, 0, kind, 0, 2, 0]) + (2048).to_bytes(4, "little") + (90 * 2048).to_bytes(4, "little")
    table = bytes(440) + b"\x01\x02\x03\x04\0\0" + entry + bytes(48) + b"\x55\xaa"
    node.write(disk, table, 0)
    # Somebody may just be looking at the partition that goes.
    wait_until("the partition", _SOON, lambda: node.run(["blockdev", "--rereadpt", disk], check=False).rc == 0)
    node.run(["udevadm", "settle"])
    return f"{disk}1" if node.exists(f"{disk}1") else f"{disk}p1"


def test_a_blank_partition_becomes_a_pool_without_a_restart_and_one_for_firmware_does_not(node: Node) -> None:
    partition = _partition(node, node.disks[2], 0xEF)
    config = {"pools": [*_pools(node)["pools"], {"name": "part", "vgs": ["vgpart"], "devices": [partition]}]}
    driver = Driver(node, config)
    driver.start()
    assert "partition type 0xef" in node.read(driver.log).decode()
    assert driver.create("pvc-p", _SIZE, _MOUNT, pool="part").code == "RESOURCE_EXHAUSTED"
    _partition(node, node.disks[2], 0x83)
    wait_until("the pool", 90, lambda: driver.create("pvc-p", _SIZE, _MOUNT, pool="part").code == "OK")
    driver.delete("pvc-p").ok()
    assert driver.stop() == 0


def test_a_disk_that_comes_late_is_brought_in_and_others_are_served_meanwhile(node: Node) -> None:
    late = "/dev/mapper/late"
    config = {"pools": [*_pools(node)["pools"], {"name": "late", "vgs": ["vglate"], "devices": [late]}]}
    driver = Driver(node, config)
    driver.start()
    driver.create("pvc-a", _SIZE, _MOUNT, pool="main").ok()
    driver.delete("pvc-a").ok()
    said = node.read(driver.log).decode()
    assert said.count(f"no device {late}") == 1, "a state is logged once"
    node.run(["dmsetup", "create", "late", "--table", f"0 {64 * 2048} linear {node.disks[3]} 0"])
    wait_until("the pool", 90, lambda: driver.create("pvc-l", _SIZE, _MOUNT, pool="late").code == "OK")
    driver.delete("pvc-l").ok()
    assert driver.stop() == 0


_OWN_DEV = (
    "mkdir -p /run/nodes-dev",
    "mount --bind /dev /run/nodes-dev",
    "mount -t tmpfs none /dev",
    "cp -a /run/nodes-dev/null /run/nodes-dev/urandom /run/nodes-dev/mapper /dev/",
)


@pytest.mark.parametrize(
    ("propagation", "prepare", "words"),
    [
        ("private", (), "private"),
        ("slave", (), "only received from the node"),
        ("private", ("mount --make-shared /var/lib/kubelet",), "shared with other containers only"),
        ("unchanged", ("mount -t tmpfs none /run/lock",), "/run/lock/lvm is not the node's own"),
        ("unchanged", (f"mkdir -p {REGISTRY}", f"mount -t tmpfs none {REGISTRY}"), f"{REGISTRY} is not the node's own"),
        ("unchanged", _OWN_DEV, "/dev is not the node's own"),
    ],
)  # fmt: skip
def test_nothing_is_staged_through_mounts_that_the_node_does_not_see(
    node: Node, propagation: str, prepare: Sequence[str], words: str
) -> None:
    node.run(["mkdir", "-p", REGISTRY])
    usual = Driver(node, _pools(node))
    usual.start()
    volume = usual.create("pvc-seen", _SIZE, _MOUNT).ok()["volume"]
    assert usual.stop() == 0
    # Propagation of everything but kubelet's directory stays: a mount would reach the node and outlive the test.
    own = [f"mount --make-rprivate {place}" for place in ("/dev", "/run")] if propagation == "unchanged" else []
    driver = contained(node, _pools(node), propagation, *own, *prepare)
    driver.begin()
    assert words in _not_ready(driver)
    staged = driver.stage(volume, _MOUNT)
    published = driver.publish(volume, _MOUNT)
    assert (staged.code, words in staged.message) == ("FAILED_PRECONDITION", True), staged
    assert (published.code, words in published.message) == ("FAILED_PRECONDITION", True), published
    assert "DaemonSet" in staged.message
    assert mounts_below(node) == []
    if propagation != "unchanged":
        driver.unstage("pvc-seen").ok()
    assert driver.stop() == 0


def test_a_container_that_shares_its_mounts_with_the_node_works(node: Node) -> None:
    driver = contained(node, _pools(node), "unchanged")
    driver.start()
    volume = driver.create("pvc-seen", _SIZE, _MOUNT).ok()["volume"]
    driver.stage(volume, _MOUNT).ok()
    driver.publish(volume, _MOUNT).ok()
    assert driver.target_path("pvc-seen") in mounts_below(node), "the node sees it"
    driver.unpublish("pvc-seen").ok()
    driver.unstage("pvc-seen").ok()
    driver.delete("pvc-seen").ok()
    assert driver.stop() == 0


@pytest.fixture
def host_disk(node: Node) -> str:
    """The host's own filesystem, which its udev leads links to."""
    disk = node.disks[1]
    node.run(["mkfs.ext4", "-q", "-F", "-L", _LABEL, "-U", _UUID, disk])
    node.run(["udevadm", "trigger", "--settle", "--action=change", disk])
    assert _leads(node) == {disk}, "the lab's udev makes links as a node's does"
    return disk


def _leads(node: Node) -> set[str]:
    links = (f"/dev/disk/by-uuid/{_UUID}", f"/dev/disk/by-label/{_LABEL}")
    return {node.run(["readlink", "-f", link]).text.strip() for link in links}


def _take_over(node: Node, device: str) -> None:
    """What a pod with this device writes to have the host's links."""
    node.run(["mkfs.ext4", "-q", "-F", "-L", _LABEL, "-U", _UUID, device])


@pytest.mark.parametrize("name", ["pvc-block", "unusual"])
def test_a_pods_device_never_takes_the_hosts_links(node: Node, host_disk: str, name: str) -> None:
    driver = Driver(node, _pools(node))
    driver.start()
    volume = driver.create(name, _SIZE, _BLOCK).ok()["volume"]
    driver.stage(volume, _BLOCK).ok()
    driver.publish(volume, _BLOCK).ok()
    node.run(["sleep", "3"])  # udev looks for new rules every three seconds
    target = driver.target_path(name)
    _take_over(node, target)
    loop = node.run(["losetup", "--find", "--show", target]).text.strip()
    for device in (f"/dev/vgmain/{name}", loop):
        node.run(
            ["udevadm", "trigger", "--settle", "--action=change", node.run(["readlink", "-f", device]).text.strip()]
        )
        assert _leads(node) == {host_disk}
    node.run(["losetup", "--detach", loop])
    for call in (driver.unpublish, driver.unstage):
        call(name).ok()
    driver.stage(volume, _BLOCK).ok()
    node.run(["udevadm", "trigger", "--settle", "--action=add", "--subsystem-match=block"])
    assert _leads(node) == {host_disk}
    driver.unstage(name).ok()
    driver.delete(name).ok()
    assert driver.stop() == 0


def test_by_the_rule_of_the_guest_image_udev_looks_for_nothing_on_a_disk(node: Node, host_disk: str) -> None:
    rule = f"/run/udev/rules.d/{_GUEST_RULE.name}"
    node.run(["mkdir", "-p", "/run/udev/rules.d"])
    node.write(rule, _GUEST_RULE.read_bytes())
    node.run(["udevadm", "control", "--reload"])
    node.run(["udevadm", "trigger", "--settle", "--action=change", host_disk])
    known = node.run(["udevadm", "info", "--query=property", host_disk]).text
    node.run(["rm", rule])
    node.run(["udevadm", "control", "--reload"])
    assert "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG=1" in known
    assert "ID_FS_" not in known
    for link in (f"/dev/disk/by-uuid/{_UUID}", f"/dev/disk/by-label/{_LABEL}"):
        assert node.run(["test", "-e", link], check=False).rc != 0


def test_a_boot_activates_no_volume_of_ours_and_the_rest_as_ever(node: Node, host_disk: str) -> None:
    driver = Driver(node, _pools(node))
    driver.start()
    volume = driver.create("pvc-boot", _SIZE, _BLOCK).ok()["volume"]
    driver.stage(volume, _BLOCK).ok()
    _take_over(node, "/dev/vgmain/pvc-boot")
    node.run(["lvcreate", "-q", "-y", "-n", "root", "-L", "8M", "vgmain"])
    node.run(["sync"])
    node.crash()
    node.boot()
    node.run(["vgchange", "-aay"])
    node.run(["udevadm", "settle"])
    active = node.run(["lvs", "--noheadings", "-o", "lv_name", "-S", "lv_active=active"]).text.split()
    assert active == ["root"]
    assert _leads(node) == {host_disk}
    again = Driver(node, _pools(node))
    again.start()
    again.stage(volume, _BLOCK).ok()
    assert node.run(["blkid", "-p", "-s", "LABEL", "-o", "value", "/dev/vgmain/pvc-boot"]).text.strip() == _LABEL
    node.run(["udevadm", "trigger", "--settle", "--action=change", "--subsystem-match=block"])
    assert _leads(node) == {host_disk}
    again.unstage("pvc-boot").ok()
    again.delete("pvc-boot").ok()
    assert again.stop() == 0
