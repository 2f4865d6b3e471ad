"""Device-mapper's own answer, byte for byte as linux/dm-ioctl.h lays it out; a question that fails is never "absent"."""

import errno
import fcntl
import struct
from pathlib import Path
from typing import Any

import pytest

from csi.core.device_number import DeviceNumber
from csi.core.errors import ToolFailed
from csi.node import device_mapper

DEV_STATUS = 0xC138FD07


@pytest.fixture
def control(tmp_path: Path) -> Path:
    made = tmp_path / "control"
    made.touch()
    return made


def answering(patch: pytest.MonkeyPatch, answer: Any) -> None:
    def ioctl(descriptor: int, number: int, request: bytearray) -> int:
        assert number == DEV_STATUS
        assert len(request) == 312
        assert struct.unpack_from("=I", request, 12) == (312,)
        assert request[48:176].rstrip(b"\0") == b"vg0-pvc--1"
        answer(request)
        return 0

    patch.setattr(fcntl, "ioctl", ioctl)


def test_a_device_is_what_the_kernel_says(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: bytearray) -> None:
        struct.pack_into("=iI", request, 24, 3, 1 << 1)
        struct.pack_into("=Q", request, 40, (254 << 8) | 7)
        request[176:183] = b"LVM-abc"

    answering(monkeypatch, answer)
    found = device_mapper.status("vg0-pvc--1", control)
    assert found is not None
    assert (found.number, found.uuid, found.open_count, found.suspended) == (DeviceNumber(254, 7), "LVM-abc", 3, True)


def test_a_device_that_the_kernel_does_not_have_is_absent(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: bytearray) -> None:
        raise OSError(errno.ENXIO, "no such device")

    answering(monkeypatch, answer)
    assert device_mapper.status("vg0-pvc--1", control) is None


def test_any_other_failure_is_an_error(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: bytearray) -> None:
        raise OSError(errno.EPERM, "not permitted")

    answering(monkeypatch, answer)
    with pytest.raises(ToolFailed, match="does not answer about vg0-pvc--1"):
        device_mapper.status("vg0-pvc--1", control)


def test_a_machine_without_device_mapper_has_no_such_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    assert device_mapper.status("vg0-pvc--1", tmp_path / "absent") is None
