"""The head of a sealed device in this guest's memory: the places of the format in it. Parses nothing."""

from dataclasses import dataclass

from csi.core.device_number import DeviceNumber
from csi.core.sealed import HEADER_A_OFFSET, HEADER_B_OFFSET, HEADER_BYTES, STATE_RECORD_BYTES, STATE_RECORD_OFFSETS
from csi.core.size import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The first 34 MiB and the last MiB of a device, read once."""

    device: str
    number: DeviceNumber
    device_bytes: int
    region: memoryview
    tail: memoryview

    def header_a(self) -> memoryview:
        """Header copy A."""
        return self.region[HEADER_A_OFFSET : HEADER_A_OFFSET + HEADER_BYTES]

    def header_b(self) -> memoryview:
        """Header copy B."""
        return self.region[HEADER_B_OFFSET : HEADER_B_OFFSET + HEADER_BYTES]

    def slots(self) -> tuple[bytes, bytes]:
        """The two state records."""
        first, second = (bytes(self.region[offset : offset + STATE_RECORD_BYTES]) for offset in STATE_RECORD_OFFSETS)
        return first, second

    def zero_but_slots(self) -> bool:
        """Whether everything that was read, the two records apart, is zero."""
        records = {offset // MIB for offset in STATE_RECORD_OFFSETS}
        zeroes = bytes(MIB)
        for number in range(len(self.region) // MIB):
            start = number * MIB + (STATE_RECORD_BYTES if number in records else 0)
            part = bytes(self.region[start : (number + 1) * MIB])
            if part != zeroes[: len(part)]:
                return False
        return bytes(self.tail) == zeroes
