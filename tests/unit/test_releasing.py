"""A device is taken away without LVM: once nobody has it, after a moment of patience, and with its own paths only."""

from pathlib import Path
from typing import Any

import pytest

from csi.core import device_mapper, disks
from csi.core.device_mapper import Mapping
from csi.core.device_number import DeviceNumber
from csi.core.errors import InUse
from csi.node import releasing

NUMBER = DeviceNumber(254, 1)


class Kernel:
    """Device-mapper with one device: how often it says busy, and what has it open."""

    def __init__(self, patch: pytest.MonkeyPatch, *, busy: int = 0, loops: int = 0, kind: str = "linear") -> None:
        self.busy = busy
        self.removed = 0
        self.there = True
        self.by_lvm: list[tuple[str, str]] = []
        patch.setattr(device_mapper, "targets", lambda _: frozenset({kind} if self.there else ()))
        patch.setattr(device_mapper, "status", lambda _: self._mapping())
        patch.setattr(device_mapper, "remove", lambda _: self._remove())
        patch.setattr(disks, "loops_on", lambda _: loops)
        patch.setattr(disks, "holders", lambda _: ())
        patch.setattr(releasing.time, "sleep", lambda _: None)

    def _mapping(self) -> Mapping | None:
        return Mapping(number=NUMBER, uuid="LVM-a", open_count=1, suspended=False) if self.there else None

    def _remove(self) -> bool:
        if self.busy:
            self.busy -= 1
            return False
        self.removed += 1
        self.there = False
        return True

    def deactivate(self, vg: str, name: str) -> None:
        self.by_lvm.append((vg, name))

    def release(self, patience_seconds: float = 60.0) -> None:
        lvm: Any = self
        releasing.release(lvm, "vg0", "pvc-1", patience_seconds)


def test_a_device_that_nobody_has_goes_and_lvm_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    kernel.release()
    assert (kernel.removed, kernel.by_lvm) == (1, [])


def test_a_machine_that_closes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, busy=3)
    kernel.release()
    assert kernel.removed == 1


def test_a_machine_that_does_not_close_is_named_as_what_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, busy=1000)
    with pytest.raises(InUse, match="stays open; end the process or virtual machine"):
        kernel.release(patience_seconds=-1.0)
    monkeypatch.setattr(disks, "holders", lambda _: ("tenant-crypt",))
    with pytest.raises(InUse, match="in use by tenant-crypt, which is made on it"):
        kernel.release(patience_seconds=-1.0)
    assert kernel.removed == 0


def test_a_loop_device_alone_holds_no_volume_up(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, busy=1000, loops=1)
    kernel.release()
    assert kernel.there


def test_a_device_that_is_gone_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    kernel.there = False
    kernel.release()
    assert kernel.removed == 0


def test_an_lv_with_devices_of_its_own_below_is_left_to_lvm(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, kind="raid")
    kernel.release()
    assert (kernel.removed, kernel.by_lvm) == (0, [("vg0", "pvc-1")])


def test_paths_that_lead_nowhere_or_to_the_device_go_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, node = tmp_path / "link", tmp_path / "node"
    for path in (link, node):
        path.symlink_to("/absent")
    leads: dict[str, DeviceNumber | None] = {str(link): NUMBER, str(node): DeviceNumber(254, 9)}
    monkeypatch.setattr(disks, "leads_to", leads.get)
    releasing._forget_paths(str(link), str(node), NUMBER)
    assert (link.is_symlink(), node.is_symlink()) == (False, True)
    leads[str(node)] = None
    releasing._forget_paths(str(link), str(node), NUMBER)
    assert not node.is_symlink()
