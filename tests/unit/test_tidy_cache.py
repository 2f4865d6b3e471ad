"""What is removed from the cache of images: no image that is new, and nothing that is no image."""

from pathlib import Path

from scripts import tidy_cache


def test_the_last_images_of_a_stage_stay_and_what_was_cut_off_goes(tmp_path: Path) -> None:
    images = tmp_path / "images"
    names = [f"{stage}-{number:016x}" for stage in ("node", "node-build") for number in range(5)]
    others = ["debian-bookworm", ".lock"]
    for name in (*names, "guest-00000000000000ff.unfinished", *others):
        (images / name).mkdir(parents=True) if name != ".lock" else (images / name).touch()
    tidy_cache.main(tmp_path)
    assert {path.name for path in images.iterdir()} == {*names[2:5], *names[7:10], *others}


def test_a_machine_without_images_is_fine(tmp_path: Path) -> None:
    tidy_cache.main(tmp_path)
    assert not list(tmp_path.iterdir())
