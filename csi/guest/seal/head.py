"""The head of a sealed device in this guest's memory: what the format has in it. Parses nothing."""

from dataclasses import dataclass

from csi.core.device_number import DeviceNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What one reading found. `header_a` and `header_b` are the parts of the two copies, `slots` the two state records."""

    device: str
    number: DeviceNumber
    device_bytes: int
    header_a: bytes
    header_b: bytes
    slots: tuple[bytes, bytes]
    zero_but_slots: bool
    """Whether the first 34 MiB and the last MiB are zero, the two records apart."""
