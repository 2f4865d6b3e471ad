"""Publish, unpublish, unstage and stage on a node where things went wrong: locked groups, links, copies of mounts, disks
that vanish, records without a pod, old kernels. Nothing gets stuck, and nothing of another volume's is touched.
"""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.driver import MIB, REGISTRY, Driver, block_capability, mount_capability, mounts_below
from lab.node import Node

pytestmark = pytest.mark.lab

MOUNT, BLOCK, XFS = mount_capability(), block_capability(), mount_capability("xfs")
KINDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "ext4": (MOUNT, {}),
    "block": (BLOCK, {}),
    "direct": (MOUNT, {"direct": "true"}),
}
LATE_SECTORS, LATE_OFFSET = 900 * 2048, 2048
CONFIG = {"pools": [{"name": "main", "vgs": ["vg0"]}, {"name": "late", "vgs": ["vg1"]}], "defaultPool": "main"}


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """`vg0` on a disk, and `vg1` on a mapping that can be taken away and made again, as a disk that is pulled is."""
    from tests.lab.conftest import _kind

    with _kind()((1024 * MIB, 1024 * MIB)) as booted:
        booted.run(["vgcreate", "-q", "vg0", booted.disks[0]])
        plug_in(booted, "late1")
        booted.run(["vgcreate", "-q", "vg1", "/dev/mapper/late1"])
        yield booted


@pytest.fixture(scope="module")
def driver(node: Node) -> Iterator[Driver]:
    made = Driver(node, CONFIG)
    made.start()
    yield made
    assert made.stop() == 0


def plug_in(node: Node, name: str) -> None:
    """The second disk, behind its first MiB: so it is one disk to LVM, whatever number it has."""
    node.run(["dmsetup", "create", name, "--table", f"0 {LATE_SECTORS} linear {node.disks[1]} {LATE_OFFSET}"])


def pull_out(node: Node, name: str) -> None:
    """From here on every read and write of it fails."""
    node.run(["dmsetup", "wipe_table", name])


def made(driver: Driver, name: str, kind: str = "ext4", **parameters: str) -> tuple[dict[str, Any], dict[str, Any]]:
    capability, own = KINDS.get(kind, (MOUNT, {}))
    volume = driver.create(name, 64 * MIB, capability, **own, **parameters).ok()["volume"]
    return volume, capability


def gone(driver: Driver, name: str, *pods: str) -> None:
    for pod in pods or ("pod-1",):
        driver.unpublish(name, pod=pod).ok()
    driver.unstage(name).ok()
    driver.delete(name).ok()
    assert mounts_below(driver.node, driver.kubelet) == []
    assert driver.node.listing(REGISTRY) == []


def commands(driver: Driver, during: Callable[[], Any]) -> list[str]:
    """The programs that the driver ran meanwhile."""
    before = len(driver.node.read(driver.log))
    during()
    lines = driver.node.read(driver.log)[before:].decode().splitlines()
    return [" ".join(event["argv"][:2]) for line in lines if "argv" in (event := json.loads(line))]


@contextmanager
def process(node: Node, *argv: str) -> Iterator[int]:
    pid = node.spawn(["sh", "-c", " ".join(argv)], f"{node.shared}/process.log")
    try:
        yield pid
    finally:
        node.run(["sh", "-c", f"kill -9 -{pid}"], check=False)
        node.wait(pid)


def until(node: Node, shell: str) -> None:
    node.run(["sh", "-c", f"for i in $(seq 100); do if {shell}; then exit 0; fi; sleep 0.1; done; exit 1"])


@pytest.mark.parametrize("kind", KINDS)
def test_taking_a_volume_down_runs_no_process_and_needs_no_lvm(driver: Driver, kind: str) -> None:
    name = f"pvc-quiet-{kind}"
    volume, capability = made(driver, name, kind)
    driver.stage(volume, capability).ok()
    driver.publish(volume, capability).ok()
    lock = "/run/lock/lvm/V_vg0"
    with process(driver.node, f"flock -x {lock} sleep 1000"):
        until(driver.node, f"! flock -n -x {lock} true")

        def down() -> None:
            driver.call("NodeGetVolumeStats", volume_id=name, volume_path=driver.target_path(name))
            for answer in (driver.unpublish(name), driver.unpublish(name), driver.unstage(name), driver.unstage(name)):
                answer.ok()
                assert answer.seconds < 5

        assert commands(driver, down) == []
    driver.delete(name).ok()


def test_a_plain_volumes_later_stage_needs_no_lvm_command(driver: Driver) -> None:
    volume, capability = made(driver, "pvc-later")
    driver.stage(volume, capability).ok()
    driver.unstage("pvc-later").ok()
    ran = commands(driver, lambda: (driver.stage(volume, capability).ok(), driver.publish(volume, capability).ok()))
    assert [one for one in ran if one.startswith("lvm") and "fullreport" not in one] == []
    assert not [one for one in ran if one.startswith(("mount", "umount"))]
    gone(driver, "pvc-later")


@pytest.mark.parametrize("linked", ["pods", "root"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_link_in_kubelets_paths_changes_nothing(driver: Driver, kind: str, linked: str) -> None:
    node, folder = driver.node, f"/run/kubelet-{linked}-{kind}"
    node.run(["sh", "-c", f"mkdir -p {folder}.data/pods {folder}.data/plugins"])
    if linked == "root":
        node.run(["ln", "-s", f"{folder}.data", folder])
    else:
        node.run(["sh", "-c", f"mkdir {folder} && ln -s {folder}.data/pods {folder}/pods"])
    own = Driver(node, CONFIG, kubelet=folder)
    own.start()
    name = f"pvc-link-{linked}-{kind}"
    volume, capability = made(own, name, kind)
    for _ in range(2):
        own.stage(volume, capability).ok()
    for _ in range(2):
        own.publish(volume, capability).ok()
    assert len([path for path in mounts_below(node, "/run") if path.endswith(f"{name}/mount")]) == 1
    assert own.delete(name).code == "FAILED_PRECONDITION"
    assert own.unstage(name).code == "FAILED_PRECONDITION"
    for _ in range(2):
        own.unpublish(name).ok()
    for _ in range(2):
        own.unstage(name).ok()
    own.delete(name).ok()
    assert [path for path in mounts_below(node, "/run") if name in path] == []
    assert own.stop() == 0


@pytest.mark.parametrize("kind", ["block", "direct"])
def test_a_staged_volume_of_guests_is_not_deleted(driver: Driver, kind: str) -> None:
    name = f"pvc-staged-{kind}"
    volume, capability = made(driver, name, kind)
    driver.stage(volume, capability).ok()
    refused = driver.delete(name)
    assert (refused.code, "still staged at" in refused.message) == ("FAILED_PRECONDITION", True), refused
    driver.unstage(name).ok()
    driver.delete(name).ok()


def test_a_wrong_id_takes_nothing_away(driver: Driver) -> None:
    node = driver.node
    volume, capability = made(driver, "pvc-victim", "direct")
    made(driver, "pvc-other")
    driver.stage(volume, capability).ok()
    driver.publish(volume, capability).ok()
    before = (mounts_below(node), node.listing(REGISTRY))
    for wrong in ("pvc-other", "pvc-unknown"):
        answer = driver.call("NodeUnpublishVolume", volume_id=wrong, target_path=driver.target_path("pvc-victim"))
        assert (answer.code, "left alone" in answer.message) == ("FAILED_PRECONDITION", True), answer
    assert (mounts_below(node), node.listing(REGISTRY)) == before
    gone(driver, "pvc-victim")
    driver.delete("pvc-other").ok()


def test_an_unknown_id_removes_no_path_and_no_mount_below_kubelets_directory(driver: Driver) -> None:
    node, kubelet = driver.node, driver.kubelet
    foreign = f"{kubelet}/pods/p/volumes/kubernetes.io~csi/x/mount"
    node.run(["mkdir", "-p", foreign, f"{kubelet}/pods/empty", f"{kubelet}/plugins_registry"])
    node.run(["mount", "-t", "tmpfs", "tmpfs", foreign])
    for path in (kubelet, f"{kubelet}/pods", f"{kubelet}/pods/empty", f"{kubelet}/plugins_registry", foreign):
        driver.call("NodeUnpublishVolume", volume_id="pvc-unknown", target_path=path)
        driver.call("NodeUnstageVolume", volume_id="pvc-unknown", staging_target_path=path)
        assert node.exists(path)
    assert mounts_below(node) == [foreign]
    node.run(["umount", foreign])


def test_a_copy_of_the_mount_in_another_namespace_holds_nothing_up(driver: Driver) -> None:
    node = driver.node
    volume, capability = made(driver, "pvc-copied")
    driver.stage(volume, capability).ok()
    driver.publish(volume, capability).ok()
    node.write(driver.target_path("pvc-copied") + "/file", b"kept")
    with process(node, "exec unshare --mount --propagation private sleep 1000") as pid:
        until(node, f"grep -q pvc-copied /proc/{pid}/mountinfo && ! cmp -s /proc/{pid}/mountinfo /proc/self/mountinfo")
        driver.unpublish("pvc-copied").ok()
        driver.unstage("pvc-copied").ok()
        driver.unstage("pvc-copied").ok()
        driver.stage(volume, capability).ok()
        driver.publish(volume, capability).ok()
        assert node.read(driver.target_path("pvc-copied") + "/file") == b"kept"
        driver.unpublish("pvc-copied").ok()
        driver.unstage("pvc-copied").ok()
        assert driver.delete("pvc-copied").code == "FAILED_PRECONDITION"
    driver.delete("pvc-copied").ok()


def test_a_mapping_on_top_is_in_use_and_no_damage(driver: Driver) -> None:
    node = driver.node
    volume, capability = made(driver, "pvc-under")
    driver.stage(volume, capability).ok()
    driver.unstage("pvc-under").ok()
    node.run(["dmsetup", "create", "on-top", "--table", "0 2048 linear /dev/vg0/pvc-under 0"])
    held = driver.stage(volume, capability)
    assert (held.code, "in use by on-top" in held.message) == ("FAILED_PRECONDITION", True), held
    node.run(["dmsetup", "remove", "on-top"])
    driver.stage(volume, capability).ok()
    gone(driver, "pvc-under")


def test_a_staging_path_that_changed_under_a_mounted_volume_holds_nothing_up(driver: Driver) -> None:
    node, name = driver.node, "pvc-moved"
    volume, capability = made(driver, name)
    driver.stage(volume, capability).ok()
    driver.publish(volume, capability).ok()
    after = f"{driver.kubelet}/plugins/kubernetes.io/csi/pv/{name}/globalmount"
    node.run(["mkdir", "-p", after])

    def publish(pod: str) -> Any:
        target = driver.target_path(name, pod)
        return driver.call(
            "NodePublishVolume",
            volume_id=name,
            staging_target_path=after,
            target_path=target,
            volume_capability=capability,
        )

    said = publish("pod-2")
    assert (said.code, driver.staging_path(name) in said.message) == ("FAILED_PRECONDITION", True), said
    driver.call("NodeStageVolume", volume_id=name, staging_target_path=after, volume_capability=capability).ok()
    driver.unpublish(name).ok()
    publish("pod-2").ok()
    driver.unpublish(name, pod="pod-2").ok()
    driver.call("NodeUnstageVolume", volume_id=name, staging_target_path=after).ok()
    assert mounts_below(node) == []
    driver.delete(name).ok()


def test_a_loop_device_hides_no_second_guest(driver: Driver) -> None:
    node, name = driver.node, "pvc-guests"
    volume = driver.create(name, 64 * MIB, BLOCK, sealed="xts").ok()["volume"]
    driver.stage(volume, BLOCK).ok()
    loop = node.run(["losetup", "--find", "--show", f"/dev/vg0/{name}"]).text.strip()
    with process(node, f"exec sleep 1000 </dev/vg0/{name}"):
        until(node, f"[ $(dmsetup info -c --noheadings -o open vg0-{name.replace('-', '--')}) = 2 ]")
        refused = driver.publish(volume, BLOCK)
        assert (refused.code, "still held open" in refused.message) == ("FAILED_PRECONDITION", True), refused
        assert driver.unstage(name).code == "FAILED_PRECONDITION"
    driver.publish(volume, BLOCK).ok()
    driver.unpublish(name).ok()
    driver.unstage(name).ok()
    node.run(["losetup", "-d", loop])
    gone(driver, name)


def test_a_mounted_disk_that_vanishes_is_taken_down_and_comes_back_under_another_number(driver: Driver) -> None:
    node, name = driver.node, "pvc-gone"
    volume = driver.create(name, 320 * MIB, XFS, pool="late").ok()["volume"]
    sealed = driver.create("pvc-sealed", 64 * MIB, MOUNT, pool="late", sealed="xts").ok()["volume"]
    driver.stage(volume, XFS).ok()
    driver.publish(volume, XFS).ok()
    node.write(driver.target_path(name) + "/file", b"kept")
    node.run(["sync"])
    driver.stage(sealed, MOUNT).ok()
    pull_out(node, "late1")
    node.run(["sh", "-c", f"touch {driver.target_path(name)}/x; sync"], check=False)
    until(node, f"! ls {driver.target_path(name)} 2>/dev/null")
    driver.unpublish(name).ok()
    driver.unstage(name).ok()
    plug_in(node, "late2")
    node.run(["udevadm", "settle"])
    dead = driver.publish(sealed, MOUNT)
    assert (dead.code, "a disk that has gone" in dead.message) == ("FAILED_PRECONDITION", True), dead
    assert node.listing(REGISTRY) == []
    driver.stage(sealed, MOUNT).ok()
    driver.publish(sealed, MOUNT).ok()
    driver.stage(volume, XFS).ok()
    driver.publish(volume, XFS).ok()
    assert node.read(driver.target_path(name) + "/file") == b"kept"
    for each in (name, "pvc-sealed"):
        driver.unpublish(each).ok()
        driver.unstage(each).ok()
        driver.delete(each).ok()


def test_a_record_of_a_pod_that_is_gone_is_swept_when_it_is_met(driver: Driver) -> None:
    node, name = driver.node, "pvc-swept"
    volume, capability = made(driver, name, "direct")
    driver.stage(volume, capability).ok()
    driver.publish(volume, capability).ok()
    target = driver.target_path(name)
    pod = str(Path(target).parents[3])
    node.run(["umount", target])
    assert "already published" in driver.publish(volume, capability, pod="pod-2").message
    node.run(["rm", "-r", pod])
    driver.publish(volume, capability, pod="pod-2").ok()
    gone(driver, name, "pod-2")


def test_a_record_with_more_metadata_is_the_same_record(driver: Driver) -> None:
    node, name = driver.node, "pvc-newer"
    volume, capability = made(driver, name, "direct")
    driver.stage(volume, capability).ok()
    driver.publish(volume, capability).ok()
    encoded = base64.urlsafe_b64encode(driver.target_path(name).encode()).decode()
    path = f"{REGISTRY}/{encoded}/mountInfo.json"
    record = json.loads(node.read(path))
    record["metadata"]["sealed-local.csi/later"] = "x"
    node.write(path, json.dumps(record).encode())
    driver.publish(volume, capability).ok()
    gone(driver, name)


OLD_KERNEL = """
import errno, os, sys
from pathlib import Path
from csi.core import mount_calls, mounts
from csi.node import bind_mounts
missing, die = {int(n) for n in sys.argv[1].split(",")}, sys.argv[2] == "die"
call, mount = mount_calls.numbered, mount_calls.call
def old(number, *arguments, path):
    if number in missing:
        raise OSError(errno.ENOSYS, "not there", path)
    return call(number, *arguments, path=path)
def dying(source, target, fstype, flags, data):
    if die and flags & bind_mounts._MS_MOVE:
        os._exit(9)
    mount(source, target, fstype, flags, data)
mount_calls.numbered, mount_calls.call = old, dying
for read_only in (True, False):
    target = f"/run/old/{'ro' if read_only else 'rw'}"
    bind_mounts.bind("/run/old/source", target, read_only=read_only, workshop=Path("/run/old/workshop"))
    (found,) = mounts.at(target)
    assert found.read_only == read_only, found
    assert "nosuid" in found.options, found
    bind_mounts.unmount(target)
assert mounts.at("/run/old/workshop") == ()
"""


def test_binds_work_on_old_kernels_and_a_kill_leaves_nothing_writable(node: Node) -> None:
    node.run(["mkdir", "-p", "/run/old/source", "/run/old/ro", "/run/old/rw"])
    node.run(["mount", "-t", "tmpfs", "-o", "nosuid", "tmpfs", "/run/old/source"])
    for missing in ("442", "428,429,442"):
        killed = node.run([sys.executable, "-c", OLD_KERNEL, missing, "die"], check=False)
        assert killed.rc == 9, killed
        assert [path for path in mounts_below(node, "/run/old") if path.startswith("/run/old/r")] == []
        node.run([sys.executable, "-c", OLD_KERNEL, missing, "live"])
    assert mounts_below(node, "/run/old") == ["/run/old/source"]
