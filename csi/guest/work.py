"""What verbs do with a volume whose keys are here, whoever says what its newest state is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from csi.guest import inspect, unlock
from csi.guest.opened import Opened
from csi.guest.seal.mapping import Mapping
from csi.guest.session import Session
from csi.kbs.register import VolumeRecord


class Work(Protocol):
    """See above."""

    def unlock(self) -> Opened:
        """Unlock and mount; format what may be."""
        ...

    def map_only(self) -> Mapping:
        """Map a formatted volume."""
        ...

    def repair(self) -> bool:
        """Write anew what is lost of the head; returns whether anything was."""
        ...

    def described(self) -> Iterator[str]:
        """The lines of `inspect`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredWork:
    """With a register; `record` is what it said when it released the key, or under the lease."""

    session: Session
    record: VolumeRecord

    def unlock(self) -> Opened:
        """See `Work`."""
        return unlock.unlock(self.session, self.record)

    def map_only(self) -> Mapping:
        """See `Work`."""
        return unlock.map_only(self.session, self.record)

    def repair(self) -> bool:
        """See `Work`."""
        return unlock.repair(self.session, self.record)

    def described(self) -> Iterator[str]:
        """See `Work`."""
        return inspect.described(self.record, unlock.look(self.session))
