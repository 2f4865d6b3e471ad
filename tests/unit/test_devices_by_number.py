"""What the kernel says of devices counts, never a path: on a made-up sysfs."""

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi.core import disks
from csi.core.command import Result
from csi.core.device_number import DeviceNumber
from csi.core.errors import Refused, ToolFailed
from csi.node.lvm import command as lvm_module
from csi.node.lvm.command import Lvm
from tests.fakes import lvm_is_there


def sysfs(folder: Path, mapped: dict[str, str], loops: dict[str, str] | None = None) -> Path:
    """A /sys with device-mapper devices (name to number) and loop devices (name to backing file)."""
    for number, (name, device) in enumerate(mapped.items()):
        block = folder / f"block/dm-{number}"
        (block / "dm").mkdir(parents=True)
        (block / "dm/name").write_text(name + "\n")
        (block / "dev").write_text(device + "\n")
        (folder / "dev/block").mkdir(parents=True, exist_ok=True)
        (folder / f"dev/block/{device}").symlink_to(block)
    for name, backing in (loops or {}).items():
        (folder / f"block/{name}/loop").mkdir(parents=True)
        (folder / f"block/{name}/loop/backing_file").write_text(backing + "\n")
    return folder


def test_a_mapping_is_found_by_its_whole_name(tmp_path: Path) -> None:
    made = sysfs(tmp_path, {"vg0-pvc--1": "254:3", "vg0-pvc--10": "254:4"})
    assert disks.mapped("vg0-pvc--1", made) == DeviceNumber(254, 3)
    assert disks.mapped("vg0-pvc", made) is None
    assert disks.mapping_name(DeviceNumber(254, 4), made) == "vg0-pvc--10"
    assert disks.mapping_name(DeviceNumber(8, 0), made) is None


def test_a_loop_device_is_known_by_what_the_kernel_says_it_lies_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path may be gone, or mean something in another namespace only."""
    made = sysfs(tmp_path, {}, {"loop7": "/k/volumeDevices/pvc-1 (deleted)", "loop8": "/absent", "loop9": "/file"})
    numbers = {"loop7": (254 << 8) | 3, "loop8": (254 << 8) | 3, "loop9": 0}

    @contextmanager
    def opened(device: str, flags: int) -> Iterator[str]:
        yield Path(device).name

    def ioctl(loop: str, request: int, answer: bytearray) -> None:
        assert (request, len(answer)) == (0x4C05, 232)
        struct.pack_into("=3Q", answer, 0, 5, 77, numbers[loop])

    monkeypatch.setattr(disks, "_opened", opened)
    monkeypatch.setattr(disks.fcntl, "ioctl", ioctl)
    assert disks.loops_on(DeviceNumber(254, 3), made) == 2
    assert disks.loops_on(DeviceNumber(254, 4), made) == 0


def test_a_loop_device_that_cannot_be_asked_is_known_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sysfs(tmp_path, {}, {"loop7": "/k/volumeDevices/pvc-1", "loop8": "/absent"})
    monkeypatch.setattr(disks, "leads_to", {"/k/volumeDevices/pvc-1": DeviceNumber(254, 3)}.get)
    assert disks.loops_on(DeviceNumber(254, 3), made, tmp_path / "dev") == 1
    assert disks.loops_on(DeviceNumber(254, 4), made, tmp_path / "dev") == 0


def test_names_that_are_not_utf_8_stop_no_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sysfs(tmp_path, {"vg0-pvc": "254:3", "on-top": "254:4"}, {"loop7": "", "loop8": ""})
    (made / "block/loop7/loop/backing_file").write_bytes(b"/srv/m\xfcll.img\n")
    (made / "block/loop8/loop/backing_file").write_bytes(b"/k/m\xfcll\rpvc-1\n")
    monkeypatch.setattr(disks, "leads_to", {os.fsdecode(b"/k/m\xfcll\rpvc-1"): DeviceNumber(254, 3)}.get)
    assert disks.loops_on(DeviceNumber(254, 3), made, tmp_path / "dev") == 1
    (made / "block/dm-1/dm/name").write_bytes(b"odd-\xff\n")
    assert disks.mapped("vg0-pvc", made) == DeviceNumber(254, 3)
    assert disks.mapped(os.fsdecode(b"odd-\xff"), made) == DeviceNumber(254, 4)
    (made / "block/dm-0/holders").mkdir()
    (made / "block/dm-0/holders/dm-1").symlink_to(made / "block/dm-1")
    (shown,) = disks.holders(DeviceNumber(254, 3), made)
    assert shown.encode() == "odd-\ufffd".encode(), "a message can carry it"


def test_a_process_that_can_open_nothing_says_so_and_calls_nothing_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no descriptor left a loop device would count as none, and so as no opener of a guest's volume."""
    made = sysfs(tmp_path, {"vg0-pvc": "254:3"}, {"loop7": "/k/pvc-1"})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as some:
        some.setattr(disks.os, "open", full)
        with pytest.raises(OSError, match="Too many open files"):
            disks.loops_on(DeviceNumber(254, 3), made, tmp_path / "dev")
    monkeypatch.setattr(Path, "read_bytes", full)
    for look in (lambda: disks.mapping_uuid(DeviceNumber(254, 3), made), lambda: disks.mapped("vg0-pvc", made)):
        with pytest.raises(OSError, match="Too many open files"):
            look()


def test_what_is_mounted_on_or_made_on_a_device_is_seen_without_its_mount(tmp_path: Path) -> None:
    made = sysfs(tmp_path, {"vg0-pvc": "254:0", "on-top": "254:1"})
    device = DeviceNumber(254, 0)
    assert (disks.mounted_anywhere(device, made), disks.holders(device, made)) == (False, ())
    (made / "fs/ext4/dm-0").mkdir(parents=True)
    (made / "block/dm-0/holders").mkdir()
    (made / "block/dm-0/holders/dm-1").symlink_to(made / "block/dm-1")
    assert (disks.mounted_anywhere(device, made), disks.holders(device, made)) == (True, ("on-top",))
    assert not disks.mounted_anywhere(DeviceNumber(254, 1), made)
    assert (disks.exists(device, made), disks.exists(DeviceNumber(8, 0), made)) == (True, False)


class Kernel:
    """LVM and /dev as one activation meets them: what a path leads to, before and after `vgmknodes`."""

    def __init__(self, patch: pytest.MonkeyPatch, device: DeviceNumber | None, *leads: DeviceNumber | None) -> None:
        self.commands: list[str] = []
        self._leads = list(leads)
        patch.setattr(lvm_module.disks, "mapped", lambda name: device if name == "vg0-pvc--1" else None)
        patch.setattr(
            lvm_module.disks, "leads_to", lambda _: self._leads[0] if len(self._leads) == 1 else self._leads.pop(0)
        )

    def run(self, argv: list[str], **_: object) -> Result:
        if not lvm_is_there.is_first_look(argv):
            self.commands.append(argv[1])
        return lvm_is_there.answer(argv)

    def activate(self, folder: Path) -> list[str]:
        Lvm(self, udev=False, lock_file=folder / "lock").activate("vg0", "pvc-1")  # type: ignore[arg-type]
        return self.commands


RIGHT, WRONG = DeviceNumber(254, 3), DeviceNumber(254, 9)


def test_activation_is_done_when_the_path_leads_to_the_volumes_own_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Kernel(monkeypatch, RIGHT, RIGHT).activate(tmp_path) == ["lvchange"]


@pytest.mark.parametrize("before", [None, WRONG])
def test_a_lost_or_stale_path_is_set_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: DeviceNumber | None
) -> None:
    assert Kernel(monkeypatch, RIGHT, before, RIGHT).activate(tmp_path) == ["lvchange", "vgmknodes"]


def test_a_path_that_stays_wrong_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match=r"/dev/vg0/pvc-1 does not lead to the volume's device 254:3"):
        Kernel(monkeypatch, RIGHT, WRONG).activate(tmp_path)


def test_an_activation_that_the_kernel_does_not_know_of_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ToolFailed, match="the kernel has no such device"):
        Kernel(monkeypatch, None, RIGHT).activate(tmp_path)


def test_numbers_are_of_block_devices_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert disks.leads_to(str(tmp_path / "file")) is None
    assert disks.leads_to(os.devnull) is None
