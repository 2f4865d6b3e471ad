"""Looking after an open volume: the agent unmounts it and tells nobody, so the mounts themselves are watched."""

import select
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from csi.core.errors import Busy, InUse, SealedLocalError
from csi.guest import verbs
from csi.guest.opened import Progress
from csi.guest.verbs import Guest

_MOUNTS: Final = Path("/proc/self/mountinfo")
_LOOK_SECONDS: Final = 5.0
"""A bound for what no event tells: a container that keeps the mapping open by a mount of its own namespace ends."""


def changes() -> Iterator[None]:
    """Now, and after each change of the mounts that this process sees, or after a while."""
    with _MOUNTS.open("rb") as mounts:
        poll = select.poll()
        poll.register(mounts, select.POLLPRI)
        while True:
            yield
            poll.poll(_LOOK_SECONDS * 1000)


def look_after(guest: Guest, volume_id: str, progress: Progress, seen: Iterator[None] | None = None) -> None:
    """Close the volume once nobody mounts it, and tell of its lease until then; returns when it is closed. `seen` says when
    to look.
    """
    last = lease = ""
    for _ in seen or changes():
        note = guest.leases().look(volume_id)
        if note is not None and note.text != lease:
            lease = note.text
            progress(f"volume {volume_id}: {lease or 'the lease is renewed again'}")
        try:
            verbs.close_volume(guest, volume_id, progress, only_unmounted=True)
        except (InUse, Busy):
            continue
        except (SealedLocalError, OSError) as error:
            if str(error) != last:
                progress(f"volume {volume_id} can't be closed; it is tried again: {error}")
                last = str(error)
            continue
        progress(f"volume {volume_id} is mounted nowhere any more and is closed")
        return
