"""Which volumes of guests are staged is noted in files that a restart of the driver keeps and a reboot doesn't."""

from pathlib import Path

from csi.node.lvm import names
from csi.node.staged_marks import StagedMarks

VOLUME, OTHER = names.checked_id("pvc-1"), names.checked_id("pvc-2")


def test_what_is_noted_is_there_for_the_next_process(tmp_path: Path) -> None:
    assert StagedMarks(tmp_path / "staged").path_of(VOLUME) is None
    for path in ("/k/old", "/k/staging"):
        StagedMarks(tmp_path / "staged").put(VOLUME, path)
    assert StagedMarks(tmp_path / "staged").path_of(VOLUME) == "/k/staging"
    assert StagedMarks(tmp_path / "staged").path_of(OTHER) is None


def test_a_note_goes_once_and_for_all(tmp_path: Path) -> None:
    marks = StagedMarks(tmp_path / "staged")
    marks.put(VOLUME, "/k/staging")
    for _ in range(2):
        marks.remove(VOLUME)
        assert marks.path_of(VOLUME) is None
