"""What deploy/guest-image does to a root filesystem: nothing of it is lost, nothing outside is touched, all is repeatable.

The bundle is a small one here; the lab builds the real one and boots it (`tests/lab/test_serve.py`).
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "deploy/guest-image"
HUB = "usr/local/bin/confidential-data-hub"
_SHOWS_ITS_WORDS = '#!/bin/sh\necho "$@"\n'

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners, and a chroot, need root")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The recipe's own scripts, with a program that says what it was called with."""
    made = tmp_path / "bundle"
    shutil.copytree(RECIPE, made)
    programs = made / "opt/sealed-local/bin"
    programs.mkdir(parents=True)
    for name in ("python3", "sealed-local"):
        _program(programs / name, _SHOWS_ITS_WORDS)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root filesystem with a shell and a stock confidential-data-hub."""
    made = tmp_path / "root"
    for folder in ("usr/bin", "usr/local/bin", "etc", "proc"):
        (made / folder).mkdir(parents=True)
    (made / "bin").symlink_to("usr/bin")
    shutil.copy("/bin/busybox", made / "usr/bin/busybox")
    for applet in ("sh", "grep", "mount"):
        (made / "usr/bin" / applet).symlink_to("busybox")
    _program(made / HUB, "the stock program")
    _program(made / "usr/bin/kata-agent", "the agent")
    return made


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _add(bundle: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    argv = [str(bundle / "add-to-rootfs"), *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def _shown(root: Path) -> dict[str, str]:
    """Every file and link below a folder, with what it holds or leads to."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes().hex()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_the_stock_program_stays_behind_ours_however_often_it_is_called(bundle: Path, root: Path) -> None:
    assert _add(bundle, root).returncode == 0
    first = _shown(root)
    assert (root / f"{HUB}.real").read_text() == "the stock program"
    assert (root / HUB).read_bytes() == (RECIPE / "confidential-data-hub").read_bytes()
    (root / "opt/sealed-local/of-an-older-bundle").touch()
    assert _add(bundle, root).returncode == 0
    assert _shown(root) == first


def test_a_newer_stock_program_takes_the_older_ones_place_behind_ours(bundle: Path, root: Path) -> None:
    _add(bundle, root)
    _program(root / HUB, "a newer stock program")
    _add(bundle, root)
    assert (root / f"{HUB}.real").read_text() == "a newer stock program"


@pytest.mark.parametrize("behind", [True, False])
def test_the_agents_words_reach_the_program_and_the_stock_one_is_named_if_there_is_one(
    bundle: Path, root: Path, behind: bool
) -> None:
    if not behind:
        (root / HUB).unlink()
    said = _add(bundle, root)
    assert ("no stock confidential-data-hub" in said.stdout) is not behind
    argv = ["chroot", str(root), f"/{HUB}", "-c", "/run/cdh.toml"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    policy = "--policy /run/confidential-containers/initdata/initdata.toml"
    stock = f" --cdh /{HUB}.real" if behind else ""
    assert done.stdout == f"guest serve {policy}{stock} -c /run/cdh.toml\n", done.stderr


def test_another_place_of_the_hub_is_taken(bundle: Path, root: Path) -> None:
    assert _add(bundle, "--hub", "/opt/coco/bin/hub", root).returncode == 0
    assert (root / "opt/coco/bin/hub").exists()
    assert (root / HUB).read_text() == "the stock program"


def _without_dm_crypt(root: Path) -> None:
    modules = root / "lib/modules/6.12.0"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("kernel/crypto/xts.ko.xz:\n")


def _a_link_that_leads_out(root: Path) -> None:
    (root / "opt").symlink_to("/tmp")


def _no_shell(root: Path) -> None:
    (root / "usr/bin/sh").unlink()


def _no_root_filesystem(root: Path) -> None:
    shutil.rmtree(root / "etc")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without_dm_crypt, "has no dm-crypt"),
        (_a_link_that_leads_out, "is a link"),
        (_no_shell, "no /bin/sh"),
        (_no_root_filesystem, "usr or etc is missing"),
    ],
)
def test_what_could_not_work_is_refused_and_nothing_was_written(bundle: Path, root: Path, spoil, words: str) -> None:  # type: ignore[no-untyped-def]
    spoil(root)
    before = _shown(root)
    refused = _add(bundle, root)
    assert (refused.returncode, words in refused.stderr) == (1, True), refused.stderr
    assert _shown(root) == before


def test_the_same_files_make_the_same_initrd_whenever_it_is_made(bundle: Path, root: Path, tmp_path: Path) -> None:
    _add(bundle, root)
    (root / "dev").mkdir()
    (root / "run").mkdir()
    (root / "run/left-behind").touch()
    made = []
    for number in (1, 2):
        os.utime(root / HUB, (number * 1_000_000, number * 1_000_000))
        out = tmp_path / f"out{number}"
        argv = [str(bundle / "make-initrd"), str(root), str(out)]
        assert subprocess.run(argv, capture_output=True, timeout=60).returncode == 0
        made.append((out / "initrd.img").read_bytes())
    assert made[0] == made[1]
    listed = subprocess.run(
        f"gzip -dc {tmp_path}/out1/initrd.img | cpio -it --quiet",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {"init", HUB, f"{HUB}.real", "opt/sealed-local/bin/sealed-local", "dev", "run"} <= set(listed)
    assert "run/left-behind" not in listed


def test_an_initrd_without_an_agent_is_not_made(bundle: Path, root: Path, tmp_path: Path) -> None:
    (root / "usr/bin/kata-agent").unlink()
    argv = [str(bundle / "make-initrd"), str(root), str(tmp_path / "out")]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, "copy it from your release of Kata" in refused.stderr) == (1, True)
    assert not (tmp_path / "out").exists()
