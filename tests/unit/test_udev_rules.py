"""The rules that keep the host's udev off tenants' devices: which devices they name, and how they come to lie there."""

import re
from pathlib import Path

import pytest

from csi.node import config as node_config
from csi.node import udev_rules
from csi.node.lvm.model import Report
from csi.node.udev_rules import UdevRules

CONFIG = node_config.parse("pools: [{name: main, vgs: [vg-0]}]\nlistConfig: {vgs: {include: [data]}}", "node.yaml")
UUID = "4f6c2a1e-0d5b-4a37-9f0c-3f1d2b7c9a10"


def covers(text: str, key: str, value: str) -> bool:
    """Whether a line of the rules matches a device that shows this; udev's patterns are those of fnmatch, `/` no border."""
    patterns = re.findall(re.escape(key) + r'=="([^"]*)"', text)
    expressions = [re.escape(one).replace(r"\*", ".*").replace(r"\?", ".") for one in patterns]
    return any(re.fullmatch(one, value) for one in expressions)


DASHED = UUID.replace("-", "--")


@pytest.mark.parametrize(
    "name", ["vg--0-pvc--a", f"vg--0-pvc--{DASHED}", f"vg--0-team--{DASHED}", "vg--0-sl--ab", "vg--0-own"]
)
def test_volumes_are_covered_by_the_kernels_name_of_their_device(name: str) -> None:
    assert covers(udev_rules.text(["vg-0"], ["own"], "/var/lib/kubelet"), "ATTR{dm/name}", name)


@pytest.mark.parametrize("name", ["vg--0-root", "vg--0-home", "other-root", "vg--0-own2", "vg-0-own"])
def test_the_hosts_own_volumes_are_not(name: str) -> None:
    text = udev_rules.text(["vg-0"], ["own"], "/var/lib/kubelet")
    volumes = [line for line in text.splitlines() if 'ATTR{dm/uuid}=="LVM-*"' in line]
    assert not covers("\n".join(volumes), "ATTR{dm/name}", name)


@pytest.mark.parametrize(
    "path",
    [
        "/dev/vg-0/pvc-a",
        "/dev/mapper/vg--0-pvc--a",
        f"/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-{UUID}/{UUID}",
        f"/var/lib/kubelet/pods/{UUID}/volumeDevices/kubernetes.io~csi/pvc-a",
    ],
)
def test_loop_devices_on_them_are_covered(path: str) -> None:
    assert covers(udev_rules.text(["vg-0"], [], "/var/lib/kubelet"), "ATTRS{loop/backing_file}", path)


@pytest.mark.parametrize("path", ["/var/lib/images/root.img", "/dev/vg-0/root", "/snap/core.snap"])
def test_loop_devices_of_the_host_are_not(path: str) -> None:
    assert not covers(udev_rules.text(["vg-0"], [], "/var/lib/kubelet"), "ATTRS{loop/backing_file}", path)


def test_every_line_keeps_content_and_further_rules_off() -> None:
    lines = [line for line in udev_rules.text(["vg-0"], ["own"], "/k").splitlines() if line.startswith("KERNEL")]
    assert lines
    for line in lines:
        for flag in ("DM_UDEV_DISABLE_DISK_RULES_FLAG", "DM_UDEV_DISABLE_OTHER_RULES_FLAG", "UDISKS_IGNORE"):
            assert f'ENV{{{flag}}}="1"' in line
        assert 'ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1"' in line


def test_a_kubelet_directory_that_would_be_a_pattern_is_left_out() -> None:
    assert "/k*t" not in udev_rules.text(["vg-0"], [], "/k*t")


def test_they_lie_there_whole_twice_and_are_written_only_when_they_change(tmp_path: Path) -> None:
    folder = tmp_path / "udev/rules.d"
    folder.parent.mkdir()
    rules = UdevRules(CONFIG, "/var/lib/kubelet", folder, sleep=lambda _: None)
    rules.cover("own")
    early, late = sorted(folder.glob("*.rules"))
    assert early.name < "13-dm-disk.rules", "before Red Hat's rules look for content"
    assert "56-lvm.rules" < late.name < "60-persistent-storage-dm.rules", "before Debian's do"
    assert early.read_text() == late.read_text() == udev_rules.text(["vg-0"], ["own"], "/var/lib/kubelet")
    before = early.stat().st_mtime_ns, early.stat().st_ino
    rules.cover("own")
    rules.cover("pvc-1")
    assert (early.stat().st_mtime_ns, early.stat().st_ino) == before
    rules.cover("other")
    assert covers(late.read_text(), "ATTR{dm/name}", "vg--0-other")
    assert covers(late.read_text(), "ATTR{dm/name}", "vg--0-own")


def test_no_volume_is_shown_before_udev_has_read_the_rules(tmp_path: Path) -> None:
    folder = tmp_path / "udev/rules.d"
    folder.parent.mkdir()
    waited: list[float] = []
    rules = UdevRules(CONFIG, "/k", folder, sleep=waited.append)
    rules.note(Report(vgs=()))
    assert waited == []
    rules.cover("pvc-1")
    assert len(waited) == 1
    assert 0 < waited[0] <= 3.5
    # What an earlier process wrote has been read long since.
    UdevRules(CONFIG, "/k", folder, sleep=waited.append).cover("pvc-2")
    assert len(waited) == 1


@pytest.mark.parametrize("name", ['a"b', "a*", "../x", "a b", ""])
def test_a_name_that_is_no_volumes_never_comes_into_a_rule(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "udev/rules.d"
    folder.parent.mkdir()
    UdevRules(CONFIG, "/k", folder).cover(name)
    assert not folder.exists()


def test_a_host_without_udev_gets_no_rules(tmp_path: Path) -> None:
    UdevRules(CONFIG, "/k", tmp_path / "udev/rules.d").cover("own")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "usual"),
    [("pvc-a", True), ("sl-00", True), (f"team-{UUID}", True), ("own", False), (UUID, False), ("a-b-c-d-e-f", False)],
)
def test_names_that_need_no_telling(name: str, usual: bool) -> None:
    assert udev_rules.is_usual(name) is usual
    assert covers(udev_rules.text(["vg"], [], "/k"), "ATTR{dm/name}", f"vg-{name.replace('-', '--')}") is usual


def test_rules_that_were_damaged_are_put_right(tmp_path: Path) -> None:
    folder = tmp_path / "rules.d"
    assert udev_rules.put("rules", folder) == 2
    (folder / "12-sealed-local.rules").write_bytes(b"\xff\xfe")
    assert udev_rules.put("rules", folder) == 1
    assert (folder / "12-sealed-local.rules").read_text() == "rules"
