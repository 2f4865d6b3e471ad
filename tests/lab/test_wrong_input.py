"""Wrong input to the real driver: the right code, a text that helps, and nothing changed on the node."""

import base64
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.driver import KUBELET, MIB, REGISTRY, Driver, block_capability, lvs, mount_capability, mounts_below
from lab.node import Node

pytestmark = pytest.mark.lab

_CAPABILITY = mount_capability()


@pytest.fixture
def unchanged(node: Node) -> Iterator[None]:
    """Whatever the test does, LVM, the mounts and Kata's registry are afterwards what they were."""
    before = _state(node)
    yield
    assert _state(node) == before


def _state(node: Node) -> tuple[Any, ...]:
    report = node.run(["lvs", "--noheadings", "-o", "vg_name,lv_name,lv_size,lv_tags,lv_active", "--units", "b"]).text
    groups = node.run(["vgs", "--noheadings", "-o", "vg_name,vg_seqno,vg_free_count"]).text
    return report, groups, mounts_below(node), node.listing(REGISTRY)


@pytest.mark.usefixtures("unchanged")
class TestCreateVolume:
    """CreateVolume with what can't be."""

    @pytest.mark.parametrize(
        ("given", "code", "text"),
        [
            ({"parameters": {"vgname": "vg0"}}, "INVALID_ARGUMENT", "[vgname]: is an unknown parameter; did you mean"),
            ({"parameters": {"iops": "100"}}, "INVALID_ARGUMENT", "parameters[iops]: is not offered by this version"),
            ({"parameters": {"lvmType": "raid7"}}, "INVALID_ARGUMENT", "parameters[lvmType]: 'raid7' is not offered"),
            ({"parameters": {"mkfsOptions": "-J device=/dev/ubda"}}, "INVALID_ARGUMENT", "parameters[mkfsOptions]"),
            ({"capacity_range": {"required_bytes": -1}}, "OUT_OF_RANGE", "capacity_range"),
            ({"capacity_range": {"required_bytes": 64 * MIB, "limit_bytes": MIB}}, "OUT_OF_RANGE", "is above limit_bytes"),
            ({"capacity_range": {"required_bytes": 1 << 62}}, "OUT_OF_RANGE", "more than a node's disks can hold"),
            ({"name": "n" * 129}, "INVALID_ARGUMENT", "name: is 129 bytes long; CSI allows at most 128"),
            ({"name": "line\nbreak"}, "INVALID_ARGUMENT", "name: contains control characters"),
            ({"parameters": {"vgName": "vg-missing"}}, "RESOURCE_EXHAUSTED", "no volume group vg-missing"),
            ({"parameters": {"pool": "missing"}}, "RESOURCE_EXHAUSTED", "no pool 'missing'; its pools: main"),
            ({"capacity_range": {"required_bytes": 1 << 40}}, "RESOURCE_EXHAUSTED", "no volume group can take 1 TiB"),
            ({"volume_capabilities": [block_capability("MULTI_NODE_MULTI_WRITER")]}, "INVALID_ARGUMENT", "access_mode"),
            ({"volume_capabilities": [mount_capability("vfat")]}, "INVALID_ARGUMENT", "'vfat' is not offered; use ext4"),
        ],
    )  # fmt: skip
    def test_is_refused_with_help(self, driver: Driver, given: dict[str, Any], code: str, text: str) -> None:
        request = {
            "name": "pvc-wrong",
            "capacity_range": {"required_bytes": 64 * MIB},
            "volume_capabilities": [_CAPABILITY],
        }
        answer = driver.call("CreateVolume", **(request | given))
        assert (answer.code, text in answer.message) == (code, True), answer


def test_a_name_of_128_bytes_is_a_good_name(driver: Driver) -> None:
    name = "n" * 128
    volume = driver.create(name, 4 * MIB, _CAPABILITY).ok()["volume"]
    assert volume["volume_id"].startswith("sl-")
    assert driver.create(name, 4 * MIB, _CAPABILITY).ok()["volume"] == volume
    driver.delete(volume["volume_id"]).ok()


def test_a_target_path_beyond_what_kata_can_look_up_is_refused_before_anything_is_done(driver: Driver) -> None:
    volume = driver.create("pvc-path", 16 * MIB, _CAPABILITY, direct="true").ok()["volume"]
    driver.stage(volume, _CAPABILITY).ok()
    before = _state(driver.node)
    pod = "p" * (190 - len(driver.target_path("pvc-path", "")))
    answer = driver.publish(volume, _CAPABILITY, pod=pod)
    assert answer.code == "INVALID_ARGUMENT"
    assert "target_path: is 190 bytes long; Kata can look up at most 189" in answer.message
    assert _state(driver.node) == before
    fitting = pod[:-1]
    driver.publish(volume, _CAPABILITY, pod=fitting).ok()
    name = base64.urlsafe_b64encode(driver.target_path("pvc-path", fitting).encode()).decode()
    assert driver.node.listing(REGISTRY) == [name]
    driver.unpublish("pvc-path", pod=fitting).ok()
    driver.unstage("pvc-path").ok()
    driver.delete("pvc-path").ok()


def test_a_path_outside_kubelets_directory_or_behind_a_planted_link_is_refused(driver: Driver) -> None:
    volume = driver.create("pvc-link", 16 * MIB, _CAPABILITY).ok()["volume"]
    driver.stage(volume, _CAPABILITY).ok()
    outside = driver.call(
        "NodePublishVolume",
        volume_id="pvc-link",
        staging_target_path=driver.staging_path("pvc-link"),
        target_path="/etc/evil",
        volume_capability=_CAPABILITY,
    )
    assert (outside.code, f"is not below {KUBELET}" in outside.message) == ("INVALID_ARGUMENT", True), outside
    target = driver.target_path("pvc-link", "linked")
    driver.node.run(["mkdir", "-p", target.rpartition("/")[0]])
    driver.node.run(["ln", "-s", "/etc", target])
    linked = driver.publish(volume, _CAPABILITY, pod="linked")
    assert linked.code == "FAILED_PRECONDITION", linked
    assert mounts_below(driver.node, "/etc") == []
    driver.node.run(["rm", target])
    driver.unstage("pvc-link").ok()
    driver.delete("pvc-link").ok()


def test_a_second_target_of_a_volume_for_one_pod_is_refused(driver: Driver) -> None:
    capability = mount_capability("", "SINGLE_NODE_SINGLE_WRITER")
    volume = driver.create("pvc-once", 16 * MIB, capability).ok()["volume"]
    driver.stage(volume, capability).ok()
    driver.publish(volume, capability).ok()
    second = driver.publish(volume, capability, pod="pod-2")
    assert (second.code, "already published at" in second.message) == ("FAILED_PRECONDITION", True), second
    assert mounts_below(driver.node).count(driver.target_path("pvc-once", "pod-2")) == 0
    driver.unpublish("pvc-once").ok()
    driver.unstage("pvc-once").ok()
    driver.delete("pvc-once").ok()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "does not exist"),
        (b"pools: [", "is not valid YAML"),
        (b"pools: [{name: a, vgs: [vg0], colour: red}]", "colour"),
        (b"pools: [{name: a}]", "names neither vgs nor devices"),
        (b"\xff\xfe", "it is not UTF-8 text"),
    ],
)
def test_an_unreadable_configuration_ends_the_start_with_status_2(node: Node, content: bytes | None, text: str) -> None:
    path = "/run/wrong.yaml"
    node.run(["rm", "-f", path])
    if content is not None:
        node.write(path, content)
    done = node.run([sys.executable, "-m", "csi", "node", "--node-id", "n", "--config", path], check=False)
    said = done.stderr.decode()
    assert (done.rc, text in said, path in said) == (2, True, True), said
    assert "Traceback" not in said


class TestPools:
    """Disks that the configuration gives to a pool."""

    _DISKS = (64 * MIB, 64 * MIB, 128 * MIB, 64 * MIB)

    def _driver(self, node: Node, devices: tuple[str, ...]) -> Driver:
        pools = [
            {"name": "good", "vgs": ["vggood"], "devices": [node.disks[0]]},
            {"name": "more", "vgs": ["vgmore"], "devices": list(devices)},
        ]
        return Driver(node, {"pools": pools})

    def test_blank_disks_become_groups_and_a_foreign_one_is_left_alone(
        self, new_node: Callable[[tuple[int, ...]], Node]
    ) -> None:
        node = new_node(self._DISKS)
        blank, big, foreign = node.disks[1:]
        node.run(["mkfs.ext4", "-q", foreign])
        before = node.run(["sha256sum", foreign]).text
        first = self._driver(node, (blank, foreign))
        first.start()
        refused = first.create("pvc-a", 16 * MIB, _CAPABILITY, pool="more")
        assert refused.code == "RESOURCE_EXHAUSTED"
        assert node.run(["sha256sum", foreign]).text == before
        log = node.read(first.log).decode()
        assert f"{foreign} holds ext4; it is left alone" in log
        assert "wipe it by hand" in log
        groups = node.run(["vgs", "--noheadings", "-o", "vg_name"]).text.split()
        assert groups == ["vggood"], "a pool with a doubtful disk is not begun"
        first.create("pvc-b", 16 * MIB, _CAPABILITY, pool="good").ok()
        assert first.stop() == 0
        second = self._driver(node, (blank, big))
        second.start()
        second.create("pvc-a", 16 * MIB, _CAPABILITY, pool="more").ok()
        self._stripes_and_fills(second, node)
        assert second.stop() == 0

    def _stripes_and_fills(self, driver: Driver, node: Node) -> None:
        """The group has a disk of 64 MiB and one of 128 MiB: stripes end where the smaller one does."""
        driver.create("pvc-s", 64 * MIB, _CAPABILITY, pool="more", lvmType="striping").ok()
        # The administrator's own lvs, with LVM's default hints, sees the new group at once, too.
        shown = node.run(["lvs", "--noheadings", "-o", "stripes", "vgmore/pvc-s"]).text.strip()
        assert shown == "2"
        striped = driver.create("pvc-t", 64 * MIB, _CAPABILITY, pool="more", lvmType="striping")
        assert striped.code == "RESOURCE_EXHAUSTED", striped
        assert "fewer stripes" in striped.message
        driver.create("pvc-t", 64 * MIB, _CAPABILITY, pool="more").ok()
        before = lvs(node)
        full = driver.create("pvc-full", 64 * MIB, _CAPABILITY, pool="more")
        assert (full.code, "vgmore has room for" in full.message) == ("RESOURCE_EXHAUSTED", True), full
        assert lvs(node) == before
