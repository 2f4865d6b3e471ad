"""Small reads of many disks past the page cache, none of which can stop the caller: each disk has a thread of its own.

A disk that froze keeps its thread in the kernel for as long as it is frozen. It is asked again when that thread comes back,
and not before, so such a disk costs one thread and one wait. One whose thread waits for a processor, or has many to serve,
is not frozen: on a node with more work than it can do that takes seconds.
"""

import mmap
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from csi.core.device_number import DeviceNumber

_ALIGNMENT: Final = 4096
_PATIENCE_SECONDS: Final = 1.0
_STARVED: Final = 5
"""So many times the patience a disk gets whose thread doesn't wait for it."""
_LOOKS: Final = 4
"""How often in its patience it is looked whether the thread still waits."""
_IDLE_SECONDS: Final = 60.0
_BUFFER_BYTES: Final = 32 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Bytes to read: a disk by its node and by the number that the node must have."""

    path: str
    number: DeviceNumber
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a place could not be read."""

    why: str
    frozen: bool = False
    """Whether the disk doesn't answer at all; whoever reads it otherwise would wait without end."""


@dataclass(slots=True, eq=False)
class _Disk:
    """A disk's thread, and what is there for it to do."""

    waiting: "queue.SimpleQueue[_Job]" = field(default_factory=queue.SimpleQueue)
    next: "dict[Place, _Job]" = field(default_factory=dict)
    """What it has not begun yet. Whoever comes meanwhile and wants the same is served by it, too."""
    task: int = 0
    moved: float = 0.0
    """When it began or ended a read, on the monotonic clock."""

    def is_in_the_kernel(self) -> bool:
        """Whether the thread waits for the disk, and not for a processor or for its turn in Python (proc(5), stat)."""
        try:
            stat = Path(f"/proc/self/task/{self.task}/stat").read_bytes()
        except OSError:
            return True
        return stat.rpartition(b")")[2].split()[0] == b"D"


@dataclass(slots=True, eq=False)
class _Job:
    place: Place
    disk: _Disk
    done: threading.Event = field(default_factory=threading.Event)
    result: bytes | Trouble = Trouble("")


class DiskReader:
    """Reads disks; one for the whole process."""

    def __init__(self, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._disks: dict[DeviceNumber, _Disk] = {}
        self._late: dict[DeviceNumber, _Job] = {}

    def read(self, places: Sequence[Place]) -> list[bytes | Trouble]:
        """What lies at each place, all disks at the same time, and not earlier than now. Takes no longer than the patience
        with a disk that keeps its thread, and at most five times as long.
        """
        jobs = [self._begin(place) for place in places]
        asked = time.monotonic()
        return [self._end(job, asked) for job in jobs]

    def _begin(self, place: Place) -> _Job:
        with self._lock:
            late = self._late.get(place.number)
            if late is not None and not late.done.is_set():
                return late
            self._late.pop(place.number, None)
            try:
                disk = self._disk(place.number)
            except (OSError, MemoryError, RuntimeError) as error:
                failed = _Job(place, _Disk(), result=Trouble(f"{place.path} can't be read now: {error}"))
                failed.done.set()
                return failed
            job = disk.next.get(place)
            if job is None:
                job = disk.next[place] = _Job(place, disk)
                disk.waiting.put(job)
            return job

    def _disk(self, number: DeviceNumber) -> _Disk:
        """The disk with its thread. Raises when the process can have no further thread or buffer; then no queue is left
        that nobody empties.
        """
        disk = self._disks.get(number)
        if disk is None:
            disk = _Disk()
            buffer = mmap.mmap(-1, _BUFFER_BYTES)
            threading.Thread(target=self._work, args=(number, disk, buffer), name="disk-reader", daemon=True).start()
            self._disks[number] = disk
        return disk

    def _end(self, job: _Job, asked: float) -> bytes | Trouble:
        with self._lock:
            known_late = self._late.get(job.place.number) is job
        if not known_late and self._comes(job, asked):
            return job.result
        with self._lock:
            self._late.setdefault(job.place.number, job)
        return Trouble(f"{job.place.path} does not answer", frozen=True)

    def _comes(self, job: _Job, asked: float) -> bool:
        """Wait for it. False when its disk lets nobody go on."""
        patience, disk = self._patience_seconds, job.disk
        give_up = asked + _STARVED * patience
        until = asked + patience
        while not job.done.wait(max(0.0, until - time.monotonic())):
            now = time.monotonic()
            stuck = now - max(asked, disk.moved)
            if now >= give_up or (stuck >= patience and disk.is_in_the_kernel()):
                return job.done.is_set()
            until = min(give_up, now + patience / _LOOKS)
        return True

    def _work(self, number: DeviceNumber, disk: _Disk, buffer: mmap.mmap) -> None:
        disk.task = threading.get_native_id()
        while True:
            try:
                job = disk.waiting.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if disk.waiting.empty():
                        del self._disks[number]
                        return
                continue
            with self._lock:
                del disk.next[job.place]
            disk.moved = time.monotonic()
            try:
                job.result = _read(job.place, buffer)
            except OSError as error:
                job.result = Trouble(f"{job.place.path} can't be read: {error.strerror}")
            except Exception as error:
                # A damaged label may name any place. The disk is as alive as before, and so must be its thread.
                job.result = Trouble(f"{job.place.path} can't be read at byte {job.place.offset}: {error}")
            disk.moved = time.monotonic()
            job.done.set()
            # A text may be large, and the next job may come much later.
            del job


def _read(place: Place, buffer: mmap.mmap) -> bytes | Trouble:
    """One direct read; the place need not be aligned, what is read around it is. Most fit the thread's own buffer: memory
    takes longer to get than such a read.
    """
    begin = place.offset - place.offset % _ALIGNMENT
    end = -(-(place.offset + place.length) // _ALIGNMENT) * _ALIGNMENT
    if end - begin > _BUFFER_BYTES:
        with mmap.mmap(-1, end - begin) as larger:
            return _read_into(place, larger, begin, end)
    return _read_into(place, buffer, begin, end)


def _read_into(place: Place, buffer: mmap.mmap, begin: int, end: int) -> bytes | Trouble:
    descriptor = os.open(place.path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if DeviceNumber.of_block_device(os.fstat(descriptor)) != place.number:
            return Trouble(f"{place.path} is not the device {place.number}")
        with memoryview(buffer) as whole:
            got = os.preadv(descriptor, [whole[: end - begin]], begin)
        found = buffer[place.offset - begin : place.offset - begin + place.length]
        if got < place.offset - begin + place.length:
            return Trouble(f"{place.path} ends before its metadata does")
        return found
    finally:
        os.close(descriptor)
