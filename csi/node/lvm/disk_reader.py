"""Small reads of many disks past the page cache, none of which can stop the caller: each disk has a thread of its own.

A disk that froze keeps its thread in the kernel for as long as it is frozen. It is asked again when that thread comes back,
and not before, so such a disk costs one thread and one wait.
"""

import mmap
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from csi.core.device_number import DeviceNumber

_ALIGNMENT: Final = 4096
_PATIENCE_SECONDS: Final = 1.0
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
class _Job:
    place: Place
    done: threading.Event = field(default_factory=threading.Event)
    result: bytes | Trouble = Trouble("")


class DiskReader:
    """Reads disks; one for the whole process."""

    def __init__(self, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._queues: dict[DeviceNumber, queue.SimpleQueue[_Job]] = {}
        self._late: dict[DeviceNumber, _Job] = {}

    def read(self, places: Sequence[Place]) -> list[bytes | Trouble]:
        """What lies at each place, all disks at the same time; takes no longer than the patience with one disk."""
        jobs = [self._begin(place) for place in places]
        give_up = time.monotonic() + self._patience_seconds
        return [self._end(job, give_up) for job in jobs]

    def _begin(self, place: Place) -> _Job:
        job = _Job(place)
        with self._lock:
            late = self._late.get(place.number)
            if late is not None and not late.done.is_set():
                return late
            self._late.pop(place.number, None)
            try:
                self._queue(place.number).put(job)
            except (OSError, MemoryError, RuntimeError) as error:
                job.result = Trouble(f"{place.path} can't be read now: {error}")
                job.done.set()
        return job

    def _queue(self, number: DeviceNumber) -> "queue.SimpleQueue[_Job]":
        """What the disk's thread takes its jobs from. Raises when the process can have no further thread or buffer; then
        no queue is left that nobody empties.
        """
        waiting = self._queues.get(number)
        if waiting is None:
            waiting = queue.SimpleQueue()
            buffer = mmap.mmap(-1, _BUFFER_BYTES)
            threading.Thread(target=self._work, args=(number, waiting, buffer), name="disk-reader", daemon=True).start()
            self._queues[number] = waiting
        return waiting

    def _end(self, job: _Job, give_up: float) -> bytes | Trouble:
        with self._lock:
            known_late = self._late.get(job.place.number) is job
        if not job.done.wait(0 if known_late else max(0.0, give_up - time.monotonic())) or known_late:
            with self._lock:
                self._late.setdefault(job.place.number, job)
            return Trouble(f"{job.place.path} does not answer", frozen=True)
        return job.result

    def _work(self, number: DeviceNumber, waiting: "queue.SimpleQueue[_Job]", buffer: mmap.mmap) -> None:
        while True:
            try:
                job = waiting.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if waiting.empty():
                        del self._queues[number]
                        return
                continue
            try:
                job.result = _read(job.place, buffer)
            except OSError as error:
                job.result = Trouble(f"{job.place.path} can't be read: {error.strerror}")
            except Exception as error:
                # A damaged label may name any place. The disk is as alive as before, and so must be its thread.
                job.result = Trouble(f"{job.place.path} can't be read at byte {job.place.offset}: {error}")
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
