"""/proc/self/mountinfo: kernel text to `Mount`. Format: proc(5)."""

import re

from csi.core.device_number import DeviceNumber
from csi.core.mount import Mount

_OCTAL = re.compile(rb"\\([0-7]{3})")


def parse(text: str) -> tuple[Mount, ...]:
    """All mounts, in the order in which the kernel lists them (a later one hides an earlier one on the same target)."""
    # Not splitlines(): the kernel escapes a newline in a name, but no other character that Python takes for a line's end.
    return tuple(_line(line) for line in text.split("\n") if line)


def _line(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    fields = left.split(" ")
    fstype, source, super_options = right.split(" ", 2)
    return Mount(
        target=_plain(fields[4]),
        root=_plain(fields[3]),
        device=DeviceNumber.parse(fields[2]),
        fstype=fstype,
        source=_plain(source),
        options=frozenset(fields[5].split(",")),
        super_options=frozenset(super_options.split(",")),
    )


def _plain(field: str) -> str:
    """Undo the kernel's octal escapes (space, tab, newline, backslash), byte by byte: a name need not be UTF-8."""
    if "\\" not in field:
        return field
    plain = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field.encode(errors="surrogateescape"))
    return plain.decode(errors="surrogateescape")
