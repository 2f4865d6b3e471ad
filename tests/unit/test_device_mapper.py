"""Device-mapper's own answer, byte for byte as linux/dm-ioctl.h lays it out; a question that fails is never "absent"."""

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from csi.core import device_mapper
from csi.core.device_number import DeviceNumber
from csi.core.errors import ToolFailed

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


# Lists, tables, removal


def kernel(patch: pytest.MonkeyPatch, answers: dict[int, Any]) -> list[tuple[int, int]]:
    """A kernel with an answer for each request; returns the requests as they come, with their sizes."""
    asked: list[tuple[int, int]] = []

    def ioctl(descriptor: int, number: int, request: bytearray) -> int:
        asked.append((number, len(request)))
        answers[number](request)
        return 0

    patch.setattr(fcntl, "ioctl", ioctl)
    return asked


def test_the_names_of_all_devices_are_read_from_one_answer(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: bytearray) -> None:
        struct.pack_into("=QI9s", request, 312, (254 << 8) | 1, 24, b"vg0-pvc\0")
        struct.pack_into("=QI9s", request, 336, (254 << 8) | 2, 0, b"vg1-x\0")

    kernel(monkeypatch, {0xC138FD02: answer})
    assert device_mapper.names(control) == ("vg0-pvc", "vg1-x")


def test_a_name_that_is_not_utf_8_asks_for_its_device(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def listed(request: bytearray) -> None:
        struct.pack_into("=QI9s", request, 312, (254 << 8) | 1, 0, b"vg0-\xff\0")

    def status(request: bytearray) -> None:
        asked.append(bytes(request[48:176]).rstrip(b"\0"))
        request[176:181] = b"odd-\xfe"

    kernel(monkeypatch, {0xC138FD02: listed, DEV_STATUS: status})
    (name,) = device_mapper.names(control)
    found = device_mapper.status(name, control)
    assert found is not None
    assert (asked, os.fsencode(found.uuid)) == ([b"vg0-\xff"], b"odd-\xfe")


def test_a_kernel_without_devices_has_no_names(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(monkeypatch, {0xC138FD02: lambda request: None})
    assert device_mapper.names(control) == ()


def test_an_answer_that_does_not_fit_is_asked_for_again_with_more_room(
    control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: bytearray) -> None:
        full = 1 << 8 if len(request) < 60_000 else 0
        struct.pack_into("=I", request, 28, full)
        struct.pack_into("=QI9s", request, 312, 1, 0, b"vg0-pvc\0")

    asked = kernel(monkeypatch, {0xC138FD02: answer})
    assert device_mapper.names(control) == ("vg0-pvc",)
    assert [size for _, size in asked] == [312 + (1 << 14), 312 + (1 << 16)]


def test_a_table_shows_its_kinds_of_target_and_its_disks(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of((0, 8, "linear", "8:16 0"), (8, 8, "striped", "2 16 8:16 0 8:32 0"))

    def below(request: bytearray) -> None:
        struct.pack_into("=IIQQ", request, 312, 2, 0, (8 << 8) | 16, (8 << 8) | 32)

    kernel(monkeypatch, {0xC138FD0C: table, 0xC138FD0B: below})
    assert device_mapper.targets("vg0-pvc", control) == {"linear", "striped"}
    assert device_mapper.lies_on("vg0-pvc", control) == {DeviceNumber(8, 16), DeviceNumber(8, 32)}


def table_of(*lines: tuple[int, int, str, str]) -> Any:
    """The kernel's answer with these targets: first sector, sectors, kind, parameters."""

    def answer(request: bytearray) -> None:
        assert struct.unpack_from("=I", request, 28)[0] == 1 << 4, "the table was asked for, not the state"
        struct.pack_into("=I", request, 20, len(lines))
        offset = 0
        for first, sectors, kind, parameters in lines:
            following = offset + 40 + len(parameters) + 1
            struct.pack_into("=QQiI16s", request, 312 + offset, first, sectors, 0, following, kind.encode())
            request[312 + offset + 40 : 312 + following] = parameters.encode() + b"\0"
            offset = following

    return answer


def test_a_table_is_told_whole_as_dmsetup_prints_it(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crypt = "aes-xts-plain64 :64:logon:cryptsetup:some-d0 0 8:16 69632 1 sector_size:4096"
    kernel(monkeypatch, {0xC138FD0C: table_of((0, 131072, "crypt", crypt), (131072, 8, "linear", "8:32 0"))})
    assert device_mapper.table("sealed-1", control) == f"0 131072 crypt {crypt}\n131072 8 linear 8:32 0"


def test_a_key_in_a_table_is_not_told(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(monkeypatch, {0xC138FD0C: table_of((0, 8, "crypt", f"aes-xts-plain64 {'5e' * 64} 0 8:16 0"))})
    assert device_mapper.table("sealed-1", control) == f"0 8 crypt aes-xts-plain64 {'00' * 64} 0 8:16 0"


@pytest.mark.parametrize(("code", "removed"), [(errno.EBUSY, False), (errno.ENXIO, True), (0, True)])
def test_a_device_is_removed_unless_something_has_it_open(
    control: Path, monkeypatch: pytest.MonkeyPatch, code: int, removed: bool
) -> None:
    def answer(_: bytearray) -> None:
        if code:
            raise OSError(code, "said the kernel")

    kernel(monkeypatch, {0xC138FD04: answer})
    assert device_mapper.remove("vg0-pvc", control) is removed


def test_a_removal_that_fails_otherwise_is_an_error(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: bytearray) -> None:
        raise OSError(errno.EPERM, "not permitted")

    kernel(monkeypatch, {0xC138FD04: answer})
    with pytest.raises(ToolFailed, match="does not answer about vg0-pvc"):
        device_mapper.remove("vg0-pvc", control)
