"""Builds the guest VM's image from Debian's own files: kernel, a small initramfs, and a read-only root filesystem.

The root holds Python, cryptsetup and the guest extra's packages; the project's own code and the per-guest files (policy)
travel in a second, tiny archive that the launcher appends, so that an edit rebuilds nothing. Cached by its inputs' digest.
"""

import compileall
import hashlib
import lzma
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib.metadata import files as package_files
from pathlib import Path

from lab.alone import alone
from lab.node import REPOSITORY

CACHE = Path(os.environ.get("SEALED_LOCAL_CACHE", REPOSITORY / ".cache")) / "guest"
_PROGRAMS = (
    "/usr/sbin/cryptsetup", "/usr/sbin/dmsetup", "/usr/sbin/mke2fs", "/usr/sbin/e2fsck", "/usr/sbin/mkfs.xfs",
    "/usr/sbin/blkid", "/usr/bin/mount", "/usr/bin/umount", "/usr/bin/python3.11", "/usr/sbin/ldconfig",
)  # fmt: skip
_LINKS = {"/usr/sbin/mkfs.ext4": "mke2fs", "/usr/bin/python3": "python3.11"}
_MODULES = (
    "configfs", "tsm", "virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_net", "virtio_console", "dm-crypt",
    "xts", "ecb",
)  # fmt: skip
_DISTRIBUTIONS = ("cryptography", "cffi", "msgspec", "protobuf", "pyudev", "rfc8785")
_UNUSED_STDLIB = (
    "test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data", "distutils", "venv", "unittest",
    "sqlite3", "curses", "dbm", "wsgiref", "xmlrpc", "__phello__", "config-3.11-x86_64-linux-gnu", "multiprocessing",
)  # fmt: skip
_KERNEL = "6.12"
"""The first long-term kernel with configfs-tsm; Debian 12's own, 6.1, has none."""
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LAB_CODE = ("guest_agent.py", "hub.py", "kata_agent.py", "tee.py", "fuse.py")
_SITE = "usr/lib/python3/dist-packages"
_FOLDERS = (
    "proc", "sys", "dev", "run", "tmp", "data", "mnt", "root", "etc", "usr/bin", "usr/sbin", "usr/lib",
)  # fmt: skip
_APPLETS = (
    "sh", "ls", "cat", "ip", "dd", "sync", "sleep", "poweroff", "df", "head", "od", "grep", "ps", "dmesg",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """Files to boot a guest from."""

    kernel: Path
    initramfs: Path
    root: Path | None
    """None where the initramfs is the root filesystem."""


def build() -> GuestImage:
    """The image for this checkout, built if no cached one fits."""
    with alone(CACHE):
        return _built(_kernel_package())


def _built(package: Path) -> GuestImage:
    key = hashlib.sha256()
    for path in (Path(__file__), REPOSITORY / "lab/guest-init", REPOSITORY / "requirements/guest.txt"):
        key.update(path.read_bytes())
    key.update(package.name.encode())
    folder = CACHE / key.hexdigest()[:16]
    image = GuestImage(kernel=folder / "vmlinuz", initramfs=folder / "initramfs.cpio", root=folder / "root.ext4")
    if not (folder / "complete").exists():
        print("lab: building the guest image (once)", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _make(package, folder, image)
        (folder / "complete").touch()
    return image


def archive(files: dict[str, bytes], programs: frozenset[str] = frozenset()) -> bytes:
    """A cpio archive (newc) of a few files, with their folders, to append to an initramfs; `programs` can be run."""
    out = bytearray()
    folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}, key=len)
    entries = [(name, 0o040755, b"") for name in folders] + [
        (name, 0o100755 if name in programs else 0o100644, data) for name, data in files.items()
    ]
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def own_code() -> dict[str, bytes]:
    """What the guest program's imports reach, as its image has it, and the lab's agent; byte-compiled."""
    with tempfile.TemporaryDirectory(prefix="sealed-lab-") as made:
        folder = Path(made)
        shutil.copytree(REPOSITORY / "csi", folder / "csi", ignore=shutil.ignore_patterns("__pycache__"))
        _run(sys.executable, str(REPOSITORY / "scripts/reached.py"), str(folder), "guest")
        for name in _LAB_CODE:
            shutil.copy(REPOSITORY / "lab" / name, folder / name)
        _compile(folder)
        return {f"extra/python/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*.pyc")}


def _make(package: Path, folder: Path, image: GuestImage) -> None:
    unpacked, root = folder / "kernel", folder / "root"
    _run("dpkg-deb", "-x", str(package), str(unpacked))
    version = next((unpacked / "lib/modules").iterdir()).name
    _run("depmod", "-b", str(unpacked), version)
    shutil.move(unpacked / f"boot/vmlinuz-{version}", image.kernel)
    _fill_root(root)
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(root), str(image.root), "160M")
    image.initramfs.write_bytes(_initramfs(unpacked, version))
    shutil.rmtree(unpacked)
    shutil.rmtree(root)


def _fill_root(root: Path) -> None:
    _make_folders(root)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/mke2fs.conf").write_bytes(Path("/etc/mke2fs.conf").read_bytes())
    shutil.copy("/bin/busybox", root / "usr/bin/busybox")
    for applet in _APPLETS:
        (root / f"usr/bin/{applet}").symlink_to("busybox")
    for program in _PROGRAMS:
        _copy(program, root)
    for link, target in _LINKS.items():
        (root / link[1:]).symlink_to(target)
    _copy_stdlib(root)
    _copy_packages(root)
    for binary in [*root.rglob("*.so"), *(root / program[1:] for program in _PROGRAMS)]:
        _copy_libraries(binary, root)
    _copy_libraries(Path("/usr/lib/x86_64-linux-gnu/libudev.so.1"), root)
    _copy("/usr/lib/x86_64-linux-gnu/libudev.so.1", root)
    _copy("/usr/lib/x86_64-linux-gnu/libgcc_s.so.1", root)
    # pyudev asks `ldconfig -p` where libudev is.
    (root / "etc/ld.so.conf").write_text("/usr/lib/x86_64-linux-gnu\n")
    _run("ldconfig", "-r", str(root))


def _make_folders(root: Path) -> None:
    for name in (*_FOLDERS, _SITE):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to("usr/lib" if name.startswith("lib") else f"usr/{name}")


def _copy_stdlib(root: Path) -> None:
    source = Path("/usr/lib/python3.11")
    shutil.copytree(
        source,
        root / "usr/lib/python3.11",
        ignore=shutil.ignore_patterns("__pycache__", *_UNUSED_STDLIB, "_test*", "xxlimited*"),
        symlinks=True,
    )
    _compile(root / "usr/lib/python3.11")


def _copy_packages(root: Path) -> None:
    """The guest extra's packages as they are installed here, hash-locked."""
    base = Path(sysconfig.get_paths()["purelib"])
    for distribution in _DISTRIBUTIONS:
        for file in package_files(distribution) or ():
            source = base / file
            if ".." in file.parts or "tests" in file.parts or source.suffix not in (".py", ".so", ""):
                continue
            if source.is_file():
                target = root / _SITE / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    for extra in base.glob("_cffi_backend*.so"):
        shutil.copy(extra, root / _SITE)
    _compile(root / _SITE)


def _compile(folder: Path) -> None:
    """Sources become unchecked byte code beside them: an emulated CPU should not compile, nor stat sources."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(folder, quiet=2, legacy=True, invalidation_mode=mode)
    for source in folder.rglob("*.py"):
        if source.with_suffix(".pyc").exists():
            source.unlink()


def _copy(path: str, root: Path) -> None:
    target = root / path[1:]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(path).resolve(), target)


def _copy_libraries(binary: Path, root: Path) -> None:
    said = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"(?:=> )?(/\S+) \(0x", said):
        real = f"/usr{library}" if library.startswith(("/lib/", "/lib64/")) else library
        if real.startswith("/usr/lib64/"):
            real = real.replace("/usr/lib64/", "/usr/lib/")
        target = root / real[1:]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(library).resolve(), target)


def _initramfs(unpacked: Path, version: str) -> bytes:
    tree: dict[str, bytes] = {"bin/busybox": Path("/bin/busybox").read_bytes()}
    tree["init"] = (REPOSITORY / "lab/guest-init").read_bytes()
    modules = unpacked / "lib/modules" / version
    order: list[str] = []
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, needs = line.partition(":")
        if Path(name).name.partition(".")[0] in _MODULES:
            order += [*reversed(needs.split()), name]
    names = list(dict.fromkeys(order))
    for name in names:
        tree[f"modules/{Path(name).stem}"] = lzma.decompress((modules / name).read_bytes())
    tree["modules/order"] = "\n".join(Path(name).stem for name in names).encode() + b"\n"
    return archive(tree, frozenset({"bin/busybox", "init"}))


def _kernel_package() -> Path:
    """Debian's cloud kernel of the version that this guest is for, downloaded once and never installed."""
    folder = CACHE / f"linux-{_KERNEL}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := _downloaded(folder)):
        options = _backports(folder)
        print(f"lab: downloading Linux {_KERNEL} from Debian's backports", flush=True)
        _run("apt-get", *options, "-q", "update")
        depends = _output("apt-cache", *options, "depends", "linux-image-cloud-amd64")
        name = next(word for word in depends.split() if word.startswith(f"linux-image-{_KERNEL}."))
        subprocess.run(["apt-get", *options, "-q", "download", name], cwd=folder, check=True, capture_output=True)
        found = _downloaded(folder)
    return found[-1]


def _downloaded(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"linux-image-{_KERNEL}.*.deb"))


def _backports(folder: Path) -> list[str]:
    """Lists of their own, so that the machine's stay as they are."""
    lists, source = folder / "lists", folder / "backports.list"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    source.write_text(f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian bookworm-backports main\n")
    places = {"Dir::Etc::sourcelist": source, "Dir::Etc::sourceparts": "/dev/null", "Dir::State::lists": lists}
    return [word for name, value in places.items() for word in ("-o", f"{name}={value}")]


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr}")


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    print(build(), file=sys.stderr)
