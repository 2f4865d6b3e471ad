"""Mounting by system calls: what the kernel says becomes what a person needs, and old kernels get the same mounts."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi.core import mount_calls, mount_options
from csi.core.errors import DiskFailed, InUse, ToolFailed
from csi.node import bind_mounts

Call = tuple[Any, ...]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The mount(2) calls, on a kernel that has none of the newer ones."""
    done: list[Call] = []

    def missing(number: int, *_: object, path: str) -> int:
        raise OSError(errno.ENOSYS, "not there", path)

    @contextmanager
    def place(workshop: Path) -> Iterator[str]:
        yield f"{workshop}/bind"

    monkeypatch.setattr(mount_calls, "numbered", missing)
    monkeypatch.setattr(bind_mounts, "_private_place", place)
    monkeypatch.setattr(bind_mounts, "_kept", lambda _: mount_options.NO_SUID)
    monkeypatch.setattr(mount_calls, "call", lambda *call: done.append(call))
    return done


def test_an_old_kernel_never_shows_a_read_only_bind_as_writable_at_its_target(
    calls: list[Call], tmp_path: Path
) -> None:
    bind_mounts.bind("/k/staging", "/k/target", read_only=True, workshop=tmp_path)
    hidden = f"{tmp_path}/bind"
    flags = bind_mounts._MS_REMOUNT | bind_mounts._MS_BIND | mount_options.READ_ONLY | mount_options.NO_SUID
    assert calls == [
        ("/k/staging", hidden, None, bind_mounts._MS_BIND, ""),
        (None, hidden, None, flags, ""),
        (hidden, "/k/target", None, bind_mounts._MS_MOVE, ""),
    ]


def test_an_old_kernel_binds_a_writable_place_at_once(calls: list[Call], tmp_path: Path) -> None:
    bind_mounts.bind("/k/staging", "/k/target", read_only=False, workshop=tmp_path)
    assert calls == [("/k/staging", "/k/target", None, bind_mounts._MS_BIND, "")]


def test_another_failure_of_a_bind_is_not_taken_for_an_old_kernel(
    calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(number: int, *_: object, path: str) -> int:
        raise OSError(errno.ENOENT, "no such file", path)

    monkeypatch.setattr(mount_calls, "numbered", absent)
    with pytest.raises(FileNotFoundError):
        bind_mounts.bind("/k/staging", "/k/target", read_only=True, workshop=tmp_path)
    assert calls == []


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EBUSY, InUse, "in use by another program or mapping"),
        (errno.EINVAL, ToolFailed, r"as ext4: Invalid argument\. A mount flag .* dmesg"),
        (errno.EIO, DiskFailed, "Input/output error; look at the kernel.s log and at the disk, then repeat"),
    ],
)
def test_a_mount_that_fails_says_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], words: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(mount_calls, "call", fail)
    with pytest.raises(kind, match=words) as caught:
        mount_calls.mount("/dev/vg0/pvc-1", "/k/staging", fstype="ext4", options=("password=secret",))
    assert "secret" not in str(caught.value)


def test_the_words_of_options_reach_the_kernel_as_flags_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Call] = []
    monkeypatch.setattr(mount_calls, "call", lambda *call: done.append(call))
    mount_calls.mount("/dev/a", "/k/s", fstype="ext4", options=("ro", "discard"))
    assert done == [("/dev/a", "/k/s", "ext4", mount_options.READ_ONLY, "discard")]


def test_a_busy_target_is_in_use_and_one_that_went_by_itself_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [("mount",), ("mount",)]

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(mount_calls, "umount", busy)
    monkeypatch.setattr(bind_mounts.mounts, "at", lambda _: shown.pop(0))
    with pytest.raises(InUse, match=r"Device or resource busy\. End the processes"):
        bind_mounts.unmount("/k/target")
    shown[:] = [("mount",), ()]
    bind_mounts.unmount("/k/target")
