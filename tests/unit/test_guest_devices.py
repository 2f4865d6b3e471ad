"""Waiting for a device by its path: what is there is taken at once, what is not is looked for at each change."""

from collections.abc import Iterator

import pytest

from csi.core.errors import NotFound
from csi.guest import devices

PATH = "/dev/disk/by-id/volume"


def appears_at_look(patch: pytest.MonkeyPatch, number: int | None) -> list[str]:
    """The path leads to a device from the look of that number on; returns the looks and changes as they come."""
    seen: list[str] = []

    def resolved(device: str) -> str | None:
        assert device == PATH
        seen.append("look")
        return "/dev/sdb" if number is not None and seen.count("look") >= number else None

    def appearing(seconds: float) -> Iterator[tuple[str, ...]]:
        assert seconds == 7.0
        for _ in range(3):
            seen.append("change")
            yield ("/dev/sda",)

    patch.setattr(devices, "resolved", resolved)
    patch.setattr(devices, "appearing", appearing)
    patch.setattr(devices, "disks", lambda: ("/dev/sda", "/dev/sdc"))
    return seen


def test_a_device_that_is_there_is_taken_without_asking_udev(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = appears_at_look(monkeypatch, 1)
    assert devices.wait_for(PATH, 7.0) == "/dev/sdb"
    assert seen == ["look"]


def test_one_that_comes_later_is_taken_at_the_change_that_brought_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = appears_at_look(monkeypatch, 3)
    assert devices.wait_for(PATH, 7.0) == "/dev/sdb"
    assert seen == ["look", "change", "look", "change", "look"]


def test_when_time_is_up_the_disks_that_there_are_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    appears_at_look(monkeypatch, None)
    with pytest.raises(NotFound, match=r"no device /dev/disk/by-id/volume after 7 s; there are: /dev/sda, /dev/sdc"):
        devices.wait_for(PATH, 7.0)
