"""Which options a class may give to mkfs: by what the tool would do with them, however they are written."""

import shutil
import subprocess
from pathlib import Path

import pytest

from csi.core.errors import InvalidInput
from csi.core.filesystem import Filesystem, make_options, traits
from csi.node import parameters
from csi.node.rpc import csi_requests
from csi.node.rpc.proto import csi_pb2

EXT4, XFS = Filesystem.EXT4, Filesystem.XFS

ALLOWED = [
    (EXT4, "-T largefile4", ("-T", "largefile4")),
    (EXT4, "-Tlargefile4", ("-T", "largefile4")),
    (EXT4, "-DT largefile", ("-D", "-T", "largefile")),
    (EXT4, "-DTlargefile", ("-D", "-T", "largefile")),
    (EXT4, "-b4096 -i 65536", ("-b", "4096", "-i", "65536")),
    (EXT4, "-N 100000", ("-N", "100000")),
    (EXT4, "-E lazy_itable_init=0,nodiscard", ("-E", "lazy_itable_init=0,nodiscard")),
    (EXT4, "-O has_journal,extent,64bit", ("-O", "has_journal,extent,64bit")),
    (EXT4, "-J size=16", ("-J", "size=16")),
    (EXT4, "-L profile-1", ("-L", "profile-1")),
    (EXT4, "-L device", ("-L", "device")),
    (EXT4, "-U random -e continue -m 1.5", ("-U", "random", "-e", "continue", "-m", "1.5")),
    (XFS, "-d agcount=2,su=64k,sw=2", ("-d", "agcount=2,su=64k,sw=2")),
    (XFS, "-dagcount=2 -K", ("-d", "agcount=2", "-K")),
    (XFS, "-d agcount=2 -d su=64k,sw=2", ("-d", "agcount=2", "-d", "su=64k,sw=2")),
    (XFS, "-m reflink=0 -i size=1024 -l size=64m", ("-m", "reflink=0", "-i", "size=1024", "-l", "size=64m")),
    (XFS, "-n ftype=1 -s size=4096 -b size=4096", ("-n", "ftype=1", "-s", "size=4096", "-b", "size=4096")),
    (XFS, "-L file-name", ("-L", "file-name")),
]  # fmt: skip

REFUSED = [
    (EXT4, "-F", "-F is not allowed: never is anything forced"),
    (EXT4, "-FqT largefile", "-F is not allowed"),
    (EXT4, "-DF", "-F is not allowed"),
    (EXT4, "-n", "-n is not allowed: then mkfs makes no filesystem"),
    (EXT4, "-Dn", "-n is not allowed"),
    (EXT4, "-V", "makes no filesystem"),
    (EXT4, "-S", "superblocks only"),
    (EXT4, "-q", "the driver decides it"),
    (EXT4, "-c", "read all of the device"),
    (EXT4, "-cc", "read all of the device"),
    (EXT4, "-d etc", "-d is not allowed: reads a file or directory"),
    (EXT4, "-detc", "-d is not allowed"),
    (EXT4, "-l bad", "reads a file"),
    (EXT4, "-z undo", "writes a file"),
    (EXT4, "-t ext2", "the type is that of the volume"),
    (EXT4, "-text2", "the type is that of the volume"),
    (EXT4, "-r 0", "another revision"),
    (EXT4, "-o hurd", "another system"),
    (EXT4, "-M mnt", "names a directory"),
    (EXT4, "-J device=sda", "-J device is not allowed: uses a second device"),
    (EXT4, "-Jdevice=UUID=1", "uses a second device"),
    (EXT4, "-J size=4,device=sda", "uses a second device"),
    (EXT4, "-E offset=4096", "begins where its volume does"),
    (EXT4, "-E stride=4,offset=4096", "begins where its volume does"),
    (EXT4, "-E assume_storage_prezeroed=1", "what was there before"),
    (EXT4, "-E test_fs", "refuse to mount"),
    (EXT4, "-E new_thing=1", "'new_thing=1' is not known; use"),
    (EXT4, "-O journal_dev", "a journal and no filesystem"),
    (EXT4, "-O extent,journal_dev", "a journal and no filesystem"),
    (EXT4, "-O extent,/dev/sda", "is not a value of -O"),
    (EXT4, "-e panic", "stop the whole node"),
    (EXT4, "-U 8d2ab7a5-0000-4000-8000-000000000000", "every volume of the class would have the same one"),
    (EXT4, "-U clear", "every volume of the class"),
    (EXT4, "-b 65536", "is not a value of -b"),
    (EXT4, "-T large -T small", "-T stands twice"),
    (EXT4, "-E nodiscard -E stride=4", "-E stands twice"),
    (EXT4, "-T", "-T needs a value"),
    (EXT4, "-L ''", "is not a value of -L"),
    (EXT4, "-T largefile4 4096", "belongs to no option"),
    (EXT4, "/dev/sda", "belongs to no option"),
    (EXT4, "-D -- /dev/sda", "is no option of one letter"),
    (EXT4, "--type=ext2", "is no option of one letter"),
    (EXT4, "-", "is no option of one letter"),
    (EXT4, "-K", "-K is no option of its mkfs"),
    (XFS, "-f", "never is anything forced"),
    (XFS, "-Kf", "never is anything forced"),
    (XFS, "-N", "makes no filesystem"),
    (XFS, "-p proto", "reads a file"),
    (XFS, "-pproto", "reads a file"),
    (XFS, "-c options=file", "reads a file"),
    (XFS, "-d name=sda", "-d name is not allowed: the device is the volume"),
    (XFS, "-d file=1", "the device is the volume"),
    (XFS, "-d file", "the device is the volume"),
    (XFS, "-d agcount=2,file", "the device is the volume"),
    (XFS, "-d size=300m", "always has the size of its volume"),
    (XFS, "-l logdev=sda", "uses a second device"),
    (XFS, "-l size=64m,logdev=sda", "uses a second device"),
    (XFS, "-l internal=0", "the log is always in the volume"),
    (XFS, "-r rtdev=sda", "uses a second device"),
    (XFS, "-rrtdev=sda", "uses a second device"),
    (XFS, "-m uuid=1", "every volume of the class"),
    (XFS, "-m bigtime=1", "the driver decides it"),
    (XFS, "-i size=512 -i size=1024", "-i size stands twice"),
    (XFS, "-T largefile4", "-T is no option of its mkfs"),
    (XFS, "-d agcount=2,su=/etc", "is not known"),
]  # fmt: skip


@pytest.mark.parametrize(("filesystem", "text", "words"), ALLOWED)
def test_what_only_shapes_the_filesystem_is_allowed(filesystem: Filesystem, text: str, words: tuple[str, ...]) -> None:
    given = {"fsType": filesystem.value, "mkfsOptions": text}
    assert parameters.parse(given).mkfs_options == words
    assert parameters.parse({"mkfsOptions": text}).mkfs_options == words, "a request may name the filesystem later"


@pytest.mark.parametrize(("filesystem", "text", "problem"), REFUSED)
def test_what_reaches_further_is_refused_with_the_reason(filesystem: Filesystem, text: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parameters.parse({"fsType": filesystem.value, "mkfsOptions": text})
    assert caught.value.field == "parameters[mkfsOptions]"
    assert problem in caught.value.problem
    assert f"for {filesystem}: " in caught.value.problem


@pytest.mark.parametrize(("filesystem", "words"), [(filesystem, words) for filesystem, _, words in ALLOWED])
def test_what_is_allowed_is_what_the_real_tool_takes(
    tmp_path: Path, filesystem: Filesystem, words: tuple[str, ...]
) -> None:
    make = traits(filesystem).make
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not on this machine")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    done = subprocess.run([*make, *words, "--", image], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_options_that_were_read_once_read_the_same_again() -> None:
    """They are checked again, from the volume's tag, before mkfs runs."""
    for filesystem, text, _ in ALLOWED:
        words = make_options(text.split(), filesystem, "mkfsOptions")
        assert make_options(words, filesystem, "mkfsOptions") == words


def test_the_filesystem_of_the_request_decides() -> None:
    request = csi_pb2.CreateVolumeRequest(
        name="pvc-1",
        parameters={"mkfsOptions": "-T largefile4"},
        capacity_range=csi_pb2.CapacityRange(required_bytes=1 << 30),
        volume_capabilities=[csi_pb2.VolumeCapability()],
    )
    item = request.volume_capabilities[0]
    item.access_mode.mode = csi_pb2.VolumeCapability.AccessMode.Mode.SINGLE_NODE_WRITER
    item.mount.fs_type = "ext4"
    assert csi_requests.create(request, ("key", "node")).parameters.mkfs_options == ("-T", "largefile4")
    item.mount.fs_type = "xfs"
    with pytest.raises(InvalidInput, match="for xfs: -T is no option"):
        csi_requests.create(request, ("key", "node"))
