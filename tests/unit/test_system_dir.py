"""Whoever runs LVM reads settings that are whole: without a filter it would write to disks that it must not look at."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from csi.core import files
from csi.node.lvm import settings
from csi.node.lvm.system_dir import SystemDirs

TEXT = "devices {\n\tglobal_filter=[]\n}\n"
PATIENCE = 20.0


def test_the_settings_are_whole_while_another_thread_writes_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dirs, opened, go_on = SystemDirs(tmp_path), threading.Event(), threading.Event()
    failed: list[Exception] = []

    def second() -> None:
        try:
            dirs.holding(TEXT)
        except OSError as error:
            failed.append(error)

    other = threading.Thread(target=second)
    write, replace = os.write, Path.replace

    def held_write(descriptor: int, content: memoryview) -> int:
        if threading.current_thread() is other:
            opened.set()
            assert go_on.wait(PATIENCE)
        return write(descriptor, content)

    def late_replace(self: Path, target: Path) -> Path:
        if threading.current_thread() is not other:
            other.start()
            assert opened.wait(PATIENCE)
        return replace(self, target)

    monkeypatch.setattr(files.os, "write", held_write)
    monkeypatch.setattr(Path, "replace", late_replace)
    file = dirs.holding(TEXT) / "lvm.conf"
    assert file.read_text() == TEXT, "LVM reads it now"
    go_on.set()
    other.join()
    assert (failed, list(file.parent.iterdir())) == ([], [file])


def test_a_full_folder_is_told_and_nothing_piles_up_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        SystemDirs(tmp_path).holding(TEXT)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_that_was_changed_or_damaged_is_written_anew(tmp_path: Path) -> None:
    dirs = SystemDirs(tmp_path)
    file = dirs.holding(TEXT) / "lvm.conf"
    for content in (b"", b"\xff\xfe", b"devices {}"):
        file.write_bytes(content)
        assert dirs.holding(TEXT) == file.parent
        assert file.read_text() == TEXT


def test_a_disk_whose_name_is_not_utf_8_stands_there_as_it_is_called(tmp_path: Path) -> None:
    name = os.fsdecode(b"/dev/disk/by-label/M\xfcll-\xc3\xbc")
    text = settings.text(udev=False, patterns=(f"r|^{name}$|",))
    assert b"M\xfcll-\xc3\xbc$|" in (SystemDirs(tmp_path).holding(text) / "lvm.conf").read_bytes()
