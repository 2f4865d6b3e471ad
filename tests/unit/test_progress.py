"""A note of how far an erasing is counts for that erasing in that boot alone; in doubt all begins again."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from csi.core import files
from csi.node import progress
from csi.node.lvm.model import LogicalVolume
from csi.node.plan import steps
from csi.node.progress import Note

LV = LogicalVolume(name="pvc-1", vg="vg0", size_bytes=1 << 30, tags=frozenset(), partial=False, uuid="uuid-1")
ERASING = (steps.ZeroRange(device="/dev/vg0/pvc-1", offset=0, length=1 << 30),)


BOOT = "boot-1"


def test_the_next_process_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    assert Note(folder, LV, ERASING, BOOT).read() == 0
    Note(folder, LV, ERASING, BOOT).write(4096)
    assert Note(folder, LV, ERASING, BOOT).read() == 4096
    Note(folder, LV, ERASING, BOOT).drop()
    assert Note(folder, LV, ERASING, BOOT).read() == 0
    Note(folder, LV, ERASING, BOOT).drop()


def test_another_volume_of_that_name_other_ranges_and_another_boot_begin_again(tmp_path: Path) -> None:
    Note(tmp_path, LV, ERASING, BOOT).write(4096)
    assert Note(tmp_path, replace(LV, uuid="uuid-2"), ERASING, BOOT).read() == 0
    assert Note(tmp_path, LV, (replace(ERASING[0], length=1 << 20),), BOOT).read() == 0
    cleared = steps.ClearRange(device="/dev/vg0/pvc-1", offset=0, length=1 << 30)
    assert Note(tmp_path, LV, (cleared,), BOOT).read() == 0
    assert Note(tmp_path, LV, ERASING, "boot-2").read() == 0


def test_a_note_that_can_not_be_written_is_logged_once_and_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    note = Note(tmp_path, LV, ERASING, BOOT)
    note.write(4096)

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomic", full)
        for done in (8192, 12288):
            note.write(done)
    assert [record.message for record in caplog.records] == ["progress can't be noted"]
    assert note.read() == 4096, "what was erased and flushed before"
    note.write(16384)
    assert note.read() == 16384
    monkeypatch.setattr(Path, "unlink", full)
    note.drop()


def test_the_sweep_passes_over_what_is_no_note(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "vg0-pvc-1.new").touch()
    progress.sweep(tmp_path, [])
    assert {path.name for path in tmp_path.iterdir()} == {"folder.json", "vg0-pvc-1.new"}


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"done_bytes": 4096}', '{"erasing": null, "done_bytes": 4096}'])
def test_a_note_that_cannot_be_read_begins_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "vg0-pvc-1.json").write_text(text)
    assert Note(tmp_path, LV, ERASING, BOOT).read() == 0


def test_notes_of_volumes_that_are_gone_are_dropped(tmp_path: Path) -> None:
    other = replace(LV, name="pvc-2")
    for lv in (LV, other):
        Note(tmp_path, lv, ERASING, BOOT).write(4096)
    progress.sweep(tmp_path, [other])
    assert Note(tmp_path, LV, ERASING, BOOT).read() == 0
    assert Note(tmp_path, other, ERASING, BOOT).read() == 4096
    progress.sweep(tmp_path / "absent", [])


def test_a_volume_whose_uuid_nobody_knows_has_no_note(tmp_path: Path) -> None:
    nameless = replace(LV, uuid="")
    Note(tmp_path, nameless, ERASING, BOOT).write(4096)
    assert Note(tmp_path, nameless, ERASING, BOOT).read() == 0
    assert list(tmp_path.glob("*.json")) == []
