"""The error tree. It knows nothing of gRPC, HTTP or processes; each program maps classes to its own codes in one place.

SealedLocalError
├── InvalidInput            a request or configuration is wrong; names the field
├── NotFound                the thing asked for does not exist
├── AlreadyExists           it exists and differs from what is asked
├── Busy                    another operation on the same volume is in flight
├── Refused                 the state of the world forbids it; says what was found and what a person can do
│   ├── ForeignContent      a device holds something that is not ours to overwrite
│   └── InUse               something still holds the volume
├── NoSpace                 no room, here and now
├── OutOfRange              the size can never be satisfied
├── Unsupported             not offered
├── Unavailable             try again later; nothing is known to be wrong with the request
├── DiskFailed              a disk answers a read or write with an error
├── ToolFailed              a program that was run did not do its work
│   ├── CommandError        it ended with an exit status that nobody expected
│   └── CommandEnded        it was ended before it could say how it went; what it did is not known
│       ├── CommandTimeout  it ran too long
│       └── CommandKilled   a signal of somebody else ended it
├── NotReleased             the broker does not release the secret (attestation or policy)
├── LeaseLost               a guest may not write to its volume any more
└── Untrusted               what the host shows fails verification; never repaired, never formatted over
    ├── Tampered            authenticated bytes do not verify
    ├── Blanked             a volume that was formatted shows nothing
    ├── RolledBack          genuine, but older than what the register has seen
    └── LiveMismatch        the kernel's mapping is not the one expected
"""

from collections.abc import Sequence

from csi.core.command_line import shown


class SealedLocalError(Exception):
    """Base of all errors that this project raises on purpose. `str()` is a text for humans."""


class InvalidInput(SealedLocalError):
    """A field of a request, a file or a command line can't be used.

    `field` is the name as the user wrote it, so that it can be found again.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class NotFound(SealedLocalError):
    """The named thing does not exist."""


class AlreadyExists(SealedLocalError):
    """It exists, with properties that are incompatible with the request."""


class Busy(SealedLocalError):
    """Another operation on the same volume is in flight; the caller repeats later."""


class Refused(SealedLocalError):
    """Doing it now would be wrong or dangerous. The text says what was found and what a person can do."""


class ForeignContent(Refused):
    """A device or directory holds data that this driver did not put there."""


class InUse(Refused):
    """Something still uses the volume."""


class NoSpace(SealedLocalError):
    """There is not enough room on this node now."""


class OutOfRange(SealedLocalError):
    """The requested size can't be satisfied whatever space is free."""


class Unsupported(SealedLocalError):
    """The operation is not offered."""


class Unavailable(SealedLocalError):
    """A dependency can't be reached; a later try may succeed."""


class DiskFailed(SealedLocalError):
    """A disk answered with an error. `what` goes on from the device's name: `takes no write at byte 0`."""

    def __init__(self, device: str, what: str, reason: OSError | str) -> None:
        said = reason if isinstance(reason, str) else reason.strerror or str(reason)
        super().__init__(f"{device} {what}: {said}; look at the kernel's log and at the disk, then repeat")
        self.device = device


class ToolFailed(SealedLocalError):
    """A program that was run did not do its work."""


class CommandError(ToolFailed):
    """A command ended with an exit status that the caller did not expect. `argv` has what the text leaves out."""

    def __init__(self, argv: Sequence[str], returncode: int, stdout: str, stderr: str) -> None:
        said = stderr.strip() or stdout.strip() or "(it printed nothing)"
        super().__init__(f"{shown(argv)}: exit status {returncode}: {said}")
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class CommandEnded(ToolFailed):
    """A command was ended before it could say how it went. It may have done all of its work, or nothing; a repeat shows."""


class CommandTimeout(CommandEnded):
    """A command was ended because it ran longer than its bound in seconds."""

    def __init__(self, argv: Sequence[str], seconds: float) -> None:
        super().__init__(f"{shown(argv)}: no end after {seconds:g} s, the process group was killed")
        self.argv = tuple(argv)
        self.seconds = seconds


class CommandKilled(CommandEnded):
    """A signal that is not ours ended a command: the kernel short of memory, or a person."""

    def __init__(self, argv: Sequence[str], number: int) -> None:
        super().__init__(f"{shown(argv)}: ended by signal {number}; look for `oom` in the kernel's log")
        self.argv = tuple(argv)
        self.number = number


class NotReleased(SealedLocalError):
    """The broker refuses the secret: attestation failed, or its policy does not allow this guest."""


class LeaseLost(SealedLocalError):
    """The guest's right to write to a volume has ended: another guest, a person or its own silence ended it."""


class Untrusted(SealedLocalError):
    """What the host shows does not verify. The guest stops here: it neither repairs nor formats."""


class Tampered(Untrusted):
    """Authenticated bytes (header, state record) do not verify."""


class Blanked(Untrusted):
    """The register says that the volume is formatted, and the device shows nothing."""


class RolledBack(Untrusted):
    """The content is genuine but older than the generation that the register has committed."""


class LiveMismatch(Untrusted):
    """The kernel's live mapping differs from the exact one that the profile demands."""
