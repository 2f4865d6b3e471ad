"""A small file tree whose files are Python functions, by the kernel's FUSE protocol (linux/fuse.h, 7.31).

The lab plays files with it that this machine's kernel has not. Standard library only; it runs in the lab's guest, too.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_LOOKUP, _FORGET, _GETATTR, _SETATTR, _MKDIR, _RMDIR, _OPEN, _READ, _WRITE, _STATFS, _RELEASE = (
    1,
    2,
    3,
    4,
    9,
    11,
    14,
    15,
    16,
    17,
    18,
)
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _DESTROY, _IOCTL, _BATCH_FORGET = (
    25,
    26,
    27,
    28,
    29,
    36,
    38,
    39,
    42,
)
_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_MAX_WRITE = 64 * 1024
_DIRECT_IO = 1
_SILENT = (_FORGET, _BATCH_FORGET, _INTERRUPT)


@dataclass(kw_only=True)
class File:
    """A file: what reading gives, what is done with what was written when it is closed, and what an ioctl answers."""

    read: Callable[[], bytes] | None = None
    written: Callable[[bytes], None] | None = None
    ioctl: Callable[[int, bytes], bytes] | None = None


@dataclass(kw_only=True)
class Folder:
    """A folder. `made` gives what a new folder in it holds; None where nobody may make one."""

    entries: "dict[str, File | Folder]" = field(default_factory=dict)
    made: "Callable[[], Folder] | None" = None


class Tree:
    """Serves one tree until it is unmounted. Everything happens in the thread that calls `serve`."""

    def __init__(self, root: Folder) -> None:
        self._nodes: dict[int, File | Folder] = {1: root}
        self._numbers: dict[int, int] = {id(root): 1}
        self._handles: dict[int, bytearray | bytes] = {}
        self._next = 1

    def mount(self, where: Path) -> int:
        """Mount it; answers the descriptor to serve."""
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"lab", os.fsencode(where), b"fuse", 0, options.encode()) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(where))
        return device

    def serve(self, device: int) -> None:
        """Answer requests until the tree is unmounted."""
        while True:
            try:
                request = os.read(device, _MAX_WRITE + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            code, answer = 0, b""
            try:
                answer = self._answer(opcode, node, request[_IN.size :])
            except OSError as error:
                code = -(error.errno or errno.EIO)
            if opcode not in _SILENT:
                os.write(device, _OUT.pack(_OUT.size + len(answer), code, unique) + answer)

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode in (_SETATTR, _GETATTR):
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if opcode in (_FLUSH, _RELEASE):
            return self._closed(opcode, node, struct.unpack_from("<Q", body)[0])
        if opcode == _INIT:
            limits = struct.pack("<IIIIHHIIHHII", 7, 31, _MAX_WRITE, 0, 12, 9, _MAX_WRITE, 1, 0, 0, 0, 0)
            return limits.ljust(64, b"\0")
        plain: dict[int, Callable[[int, bytes], bytes]] = {
            _LOOKUP: self._lookup, _MKDIR: self._mkdir, _RMDIR: self._rmdir, _OPEN: self._open, _OPENDIR: self._open_folder,
            _READ: self._read, _READDIR: self._list, _WRITE: self._write, _IOCTL: self._ioctl,
            _STATFS: lambda *_: bytes(80), _RELEASEDIR: lambda *_: b"", _DESTROY: lambda *_: b"",
        }  # fmt: skip
        if opcode in _SILENT:
            return b""
        if opcode not in plain:
            raise OSError(errno.ENOSYS, "")
        return plain[opcode](node, body)

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._folder(node).entries.get(_name(body)))

    def _mkdir(self, node: int, body: bytes) -> bytes:
        folder, name = self._folder(node), _name(body[8:])
        if name in folder.entries:
            raise OSError(errno.EEXIST, "")
        if folder.made is None:
            raise OSError(errno.EPERM, "")
        folder.entries[name] = folder.made()
        return self._entry(folder.entries[name])

    def _rmdir(self, node: int, body: bytes) -> bytes:
        if self._folder(node).entries.pop(_name(body), None) is None:
            raise OSError(errno.ENOENT, "")
        return b""

    def _open(self, node: int, _: bytes) -> bytes:
        self._next += 1
        file = self._nodes[node]
        assert isinstance(file, File)
        self._handles[self._next] = bytearray() if file.written is not None else b""
        return struct.pack("<QII", self._next, _DIRECT_IO, 0)

    def _open_folder(self, node: int, _: bytes) -> bytes:
        self._folder(node)
        return struct.pack("<QII", 0, 0, 0)

    def _read(self, node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        file = self._nodes[node]
        if not isinstance(file, File) or file.read is None:
            raise OSError(errno.EACCES, "")
        if offset == 0:
            self._handles[handle] = file.read()
        return bytes(self._handles[handle][offset : offset + size])

    def _write(self, node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        buffer = self._handles[handle]
        if not isinstance(buffer, bytearray):
            raise OSError(errno.EACCES, "")
        buffer[offset : offset + size] = body[40 : 40 + size]
        return struct.pack("<II", size, 0)

    def _closed(self, opcode: int, node: int, handle: int) -> bytes:
        """A binary file of configfs takes what was written when it is closed, as a whole."""
        buffer, file = self._handles.get(handle), self._nodes[node]
        if opcode == _RELEASE:
            self._handles.pop(handle, None)
        elif isinstance(buffer, bytearray) and buffer and isinstance(file, File) and file.written is not None:
            written = bytes(buffer)
            buffer.clear()
            file.written(written)
        return b""

    def _ioctl(self, node: int, body: bytes) -> bytes:
        _, _, command, _, in_size, _ = struct.unpack_from("<QIIQII", body)
        file = self._nodes[node]
        if not isinstance(file, File) or file.ioctl is None:
            raise OSError(errno.ENOTTY, "")
        return struct.pack("<iIII", 0, 0, 0, 0) + file.ioctl(command, body[32 : 32 + in_size])

    def _list(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        out = b""
        for number, name in enumerate(self._folder(node).entries, start=1):
            if number > offset:
                entry = struct.pack("<QQII", number, number, len(name), 0) + name.encode()
                entry += bytes(-len(entry) % 8)
                if len(out) + len(entry) > size:
                    break
                out += entry
        return out

    def _folder(self, node: int) -> Folder:
        found = self._nodes[node]
        if not isinstance(found, Folder):
            raise OSError(errno.ENOTDIR, "")
        return found

    def _entry(self, item: "File | Folder | None") -> bytes:
        if item is None:
            raise OSError(errno.ENOENT, "")
        number = self._numbers.setdefault(id(item), len(self._numbers) + 1)
        self._nodes[number] = item  # Kept for good, so that no other object gets the same id.
        return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + self._attributes(number)

    def _attributes(self, node: int) -> bytes:
        item = self._nodes[node]
        mode = stat.S_IFDIR | 0o755 if isinstance(item, Folder) else stat.S_IFREG | 0o600
        return _ATTRIBUTES.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _name(body: bytes) -> str:
    return body.split(b"\0", 1)[0].decode()
