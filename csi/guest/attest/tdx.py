"""TDX: a quote for the broker, and what the TD itself knows of its configuration.

The quote is made by an enclave of the host. So it is for others, who verify its signature; the guest asks the TDX module
for its own registers, by way of its kernel.
"""

import fcntl
import os
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi.core.errors import Refused, Unavailable
from csi.guest.attest.tsm import Tsm
from csi.kbs import messages as kbs

PROVIDER: Final = "tdx_guest"
_DATA_BYTES, _REPORT_BYTES = 64, 1024
_GET_REPORT: Final = 3 << 30 | (_DATA_BYTES + _REPORT_BYTES) << 16 | ord("T") << 8 | 1
"""TDX_CMD_GET_REPORT0 of linux/tdx-guest.h: 64 bytes of report data in, the same and the TD report out."""
_TYPE, _DATA_AT, _MRCONFIGID_AT = 0x81, 128, 576
_REGISTER_BYTES: Final = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxAttester:
    """Quotes by configfs-tsm."""

    tsm: Tsm

    @property
    def tee(self) -> str:
        """See `Attester.tee`."""
        return str(kbs.Tee.TDX)

    def evidence(self, report_data: bytes) -> object:
        """See `Attester.evidence`. The event log explains RTMRs; whoever compares them does not need it."""
        return {"quote": b64encode(self.tsm.report(report_data).evidence).decode("ascii")}


def configuration(measurements: Path, device: Path) -> bytes:
    """MRCONFIGID, 48 bytes: from the kernel's file (Linux 6.16), else from a TD report by its device (5.19).

    Raises `Unavailable` where this guest has neither.
    """
    try:
        found = (measurements / "mrconfigid").read_bytes()
    except FileNotFoundError:
        found = _by_device(device)
    except OSError as error:
        raise Unavailable(f"{measurements}: {error.strerror}") from error
    if len(found) != _REGISTER_BYTES:
        raise Refused(f"MRCONFIGID has {len(found)} bytes, not {_REGISTER_BYTES}")
    return found


def _by_device(path: Path) -> bytes:
    asked = os.urandom(_DATA_BYTES)
    request = bytearray(asked + bytes(_REPORT_BYTES))
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _GET_REPORT, request)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(
            f"this guest can't ask the TDX module what was measured: {path}: {error.strerror}. A container needs that "
            "device, or Linux 6.16 in the guest"
        ) from error
    report = bytes(request[_DATA_BYTES:])
    if report[0] != _TYPE or report[_DATA_AT : _DATA_AT + _DATA_BYTES] != asked:
        raise Refused(f"what {path} answers is not the TD report that was asked for")
    return report[_MRCONFIGID_AT : _MRCONFIGID_AT + _REGISTER_BYTES]
