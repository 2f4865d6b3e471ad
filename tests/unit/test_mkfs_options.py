"""`mkfsOptions` are judged by what they mean to their tool, however they are spelled."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from csi.core.filesystem import Filesystem, traits
from csi.node import mkfs_options

EXT4, XFS = Filesystem.EXT4, Filesystem.XFS


def checked(text: str, filesystem: Filesystem | None) -> tuple[str, ...]:
    return mkfs_options.checked(shlex.split(text), filesystem)


@pytest.mark.parametrize(
    ("filesystem", "text", "words"),
    [
        (EXT4, "-T largefile4", ("-T", "largefile4")),
        (EXT4, "-Tlargefile4", ("-T", "largefile4")),
        (EXT4, "-DT largefile", ("-D", "-T", "largefile")),
        (EXT4, "-L my-device=name", ("-L", "my-device=name")),
        (EXT4, "-b4096 -i 65536", ("-b", "4096", "-i", "65536")),
        (EXT4, "-E stride=16,stripe_width=64,nodiscard", ("-E", "stride=16,stripe_width=64,nodiscard")),
        (EXT4, "-J size=64", ("-J", "size=64")),
        (EXT4, "-N 1000", ("-N", "1000")),
        (XFS, "-d agcount=4,su=64k,sw=2", ("-d", "agcount=4,su=64k,sw=2")),
        (XFS, "-l size=64m -K", ("-l", "size=64m", "-K")),
        (XFS, "-m reflink=0 -n ftype=1", ("-m", "reflink=0", "-n", "ftype=1")),
        (None, "-T largefile4", ("-T", "largefile4")),
        (None, "-K", ("-K",)),
        (None, "-L data", ("-L", "data")),
    ],
)
def test_what_only_shapes_the_filesystem_is_allowed(
    filesystem: Filesystem | None, text: str, words: tuple[str, ...]
) -> None:
    assert checked(text, filesystem) == words


@pytest.mark.parametrize(
    ("filesystem", "text", "why"),
    [
        (EXT4, "-d etc", "reads a file or a directory"),
        (EXT4, "-detc", "reads a file or a directory"),
        (EXT4, "-l badblocks", "reads a file"),
        (EXT4, "-z undo", "writes a file"),
        (EXT4, "-J device=UUID=1", "second device"),
        (EXT4, "-J size=64,device=LABEL=a", "second device"),
        (EXT4, "-O has_journal,journal_dev", "makes no filesystem"),
        (EXT4, "-E offset=1048576", "elsewhere"),
        (EXT4, "-E nodiscard,android_sparse", "makes no filesystem"),
        (EXT4, "-E nothing_known=1", "'nothing_known' is not one of"),
        (EXT4, "-n", "makes no filesystem"),
        (EXT4, "-Dn", "makes no filesystem"),
        (EXT4, "-S", "makes no filesystem"),
        (EXT4, "-V", "makes no filesystem"),
        (EXT4, "-F", "decided by the driver"),
        (EXT4, "-t ext2", "another filesystem"),
        (EXT4, "-U 00000000-0000-0000-0000-000000000001", "the same UUID"),
        (EXT4, "-K", "option -K not recognized"),
        (EXT4, "-m", "option -m requires argument"),
        (EXT4, "-m 0 -- 100M", "'100M' belongs to no option"),
        (EXT4, "vda", "'vda' belongs to no option"),
        (XFS, "-d file=1,name=x", "second device or a file"),
        (XFS, "-dagcount=4,name=x", "second device or a file"),
        (XFS, "-d size=1g", "the volume gives the size"),
        (XFS, "-l logdev=sda", "second device"),
        (XFS, "-l internal=0", "second device"),
        (XFS, "-r rtdev=sda", "second device"),
        (XFS, "-p proto", "reads a file"),
        (XFS, "-c options=file", "reads a file"),
        (XFS, "-m crc=1,uuid=1", "the same UUID"),
        (XFS, "-KN", "makes no filesystem"),
        (XFS, "-f", "decided by the driver"),
    ],
)
def test_what_reaches_beyond_the_volume_or_makes_less_than_a_filesystem_is_refused(
    filesystem: Filesystem, text: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        checked(text, filesystem)


@pytest.mark.parametrize("text", ["-d agcount=4", "-l size=64m", "-N 1000", "-n ftype=1"])
def test_what_is_harmless_to_one_tool_and_not_to_another_needs_the_filesystems_name(text: str) -> None:
    with pytest.raises(ValueError, match="Name the filesystem in"):
        checked(text, None)


def test_what_means_nothing_to_any_tool_is_refused_with_what_each_says() -> None:
    with pytest.raises(ValueError, match="ext4: option -y not recognized; xfs: option -y not recognized"):
        checked("-y", None)


@pytest.mark.parametrize("filesystem", Filesystem)
def test_no_option_of_ours_is_one_that_a_class_may_not_give_but_for_force(filesystem: Filesystem) -> None:
    table = mkfs_options.table(filesystem)
    ours = {word[1:] for word in traits(filesystem).make[1:] if word.startswith("-")}
    assert {letter for letter in ours if isinstance(table.get(letter), mkfs_options.Refused)} <= {"F", "f"}


@pytest.mark.parametrize(
    "text", ["-T largefile4", "-E stride=16,stripe_width=64", "-DO ^has_journal -N 1000", "-i65536"]
)
def test_the_tool_takes_what_is_allowed(tmp_path: Path, text: str) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not on this machine")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run([*traits(EXT4).make, *checked(text, EXT4), "--", image], check=True, capture_output=True)
