"""MRTD and RTMR1 and RTMR2 of a TD that QEMU boots directly: firmware, kernel, command line and initrd given.

MRTD follows Intel's TDX module specification (TDH.MEM.PAGE.ADD, TDH.MR.EXTEND), in the order of Linux' KVM: each page
is added and then measured. The registers follow what OVMF and the kernel's EFI stub log. QEMU before 10.1 writes boot
parameters into the kernel's header before it is measured; such a host's RTMR1 is another.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from csi.broker.measure import authenticode, tdvf
from csi.broker.measure.hand_off import VirtualMachine, platform_events
from csi.core.errors import InvalidInput

_CHUNK_BYTES: Final = 256
_RECORD_BYTES: Final = 128
SEPARATOR: Final = bytes(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a TD is started with; the names are for errors."""

    firmware: bytes
    firmware_name: str
    kernel: bytes
    kernel_name: str
    command_line: str
    initrd: bytes | None = None


def registers(boot: Boot, machine: VirtualMachine | None = None) -> dict[str, str]:
    """Hex values by register. RTMR0 is a matter of the virtual machine's shape, and missing where that is not given.

    Raises `InvalidInput` for files of another kind.
    """
    sections = tdvf.sections(boot.firmware, boot.firmware_name)
    found = {"mrtd": mrtd(sections)}
    if machine is not None:
        found["rtmr0"] = extended(platform_events(sections, machine, boot.firmware_name))
    found["rtmr1"] = extended(_program_events(boot))
    found["rtmr2"] = extended(_kernel_events(boot))
    return {name: value.hex() for name, value in found.items()}


def mrtd(sections: Iterable[tdvf.Section]) -> bytes:
    """The digest of the TD's first memory."""
    digest = hashlib.sha384()
    for section in sections:
        if section.added:
            for record in _records(section):
                digest.update(record)
    return digest.digest()


def extended(events: Iterable[bytes]) -> bytes:
    """A register after all events, each of which is what was logged and not its digest."""
    value = bytes(hashlib.sha384().digest_size)
    for event in events:
        value = hashlib.sha384(value + event).digest()
    return value


def _records(section: tdvf.Section) -> Iterator[bytes]:
    for offset in range(0, section.memory_bytes, tdvf.PAGE_BYTES):
        yield _record(b"MEM.PAGE.ADD", section.address + offset)
        if section.measured:
            for start in range(offset, offset + tdvf.PAGE_BYTES, _CHUNK_BYTES):
                yield _record(b"MR.EXTEND", section.address + start)
                yield section.content[start : start + _CHUNK_BYTES]


def _record(name: bytes, address: int) -> bytes:
    return (name.ljust(16, b"\0") + address.to_bytes(8, "little")).ljust(_RECORD_BYTES, b"\0")


def _program_events(boot: Boot) -> Iterator[bytes]:
    """RTMR1: the firmware starts the kernel as a program, and the kernel ends the firmware's services."""
    yield authenticode.sha384(boot.kernel, boot.kernel_name)
    for event in (
        b"Calling EFI Application from Boot Option",
        SEPARATOR,
        b"Exit Boot Services Invocation",
        b"Exit Boot Services Returned with Success",
    ):
        yield hashlib.sha384(event).digest()


def _kernel_events(boot: Boot) -> Iterator[bytes]:
    """RTMR2: what the kernel's EFI stub was given. OVMF adds a word to the command line when there is an initrd."""
    if not boot.command_line:
        raise InvalidInput(
            "--append", "is empty: then it is the kernel's built-in one that counts, which is not measured"
        )
    words = boot.command_line if not boot.initrd else f"{boot.command_line} initrd=initrd"
    yield hashlib.sha384((words + "\0").encode("utf-16-le")).digest()
    if boot.initrd:
        yield hashlib.sha384(boot.initrd).digest()
