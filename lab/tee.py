"""Plays a TEE: the kernel's configfs-tsm (drivers/virt/coco/tsm.c) and /dev/tdx_guest, for a chip that a test made up.

`python3 tee.py CHIP MOUNT` mounts the tree and goes on in the background. CHIP is JSON: which driver answers, the signed
part of its reports, the key that signs them, and what stands after the signature. It proves nothing to any broker but one
that was told to trust the test's authority. Runs in the lab's guest and in fast tests, never in anything that is shipped.
"""

import errno
import json
import os
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

try:
    from lab.fuse import File, Folder, Tree
except ImportError:  # In the guest both files lie in one folder.
    from fuse import File, Folder, Tree  # type: ignore[import-not-found, no-redef]

_INBLOB_MOST = 64
_GET_REPORT0 = 0xC4405401
_QUOTE_HEADER = 48
"""Before the TD report in a quote; the registers of the TD follow."""
_DATA_AT = {"tdx_guest": _QUOTE_HEADER + 520, "sev_guest": 0x50}


class Chip:
    """What signs reports."""

    def __init__(self, chip: dict[str, Any]) -> None:
        self.provider: str = chip["provider"]
        self.auxblob = bytes.fromhex(chip["auxblob"])
        self.meddled: bool = chip.get("meddled", False)
        self.body = bytes.fromhex(chip["body"])
        self._after = bytes.fromhex(chip["after"])
        key = serialization.load_pem_private_key(chip["key"].encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    def report(self, data: bytes) -> bytes:
        """What stands in `outblob`: a quote, or a SEV-SNP report."""
        at = _DATA_AT[self.provider]
        body = self.body[:at] + data.ljust(64, b"\0") + self.body[at + 64 :]
        if self.provider == "sev_guest":
            r, s = self._signature(body, hashes.SHA384())
            return body + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)
        r, s = self._signature(body, hashes.SHA256())
        certified = r.to_bytes(32, "big") + s.to_bytes(32, "big") + self._after
        return body + struct.pack("<I", len(certified)) + certified

    def td_report(self, command: int, request: bytes) -> bytes:
        """TDX_CMD_GET_REPORT0: the request, and the TD's own report behind it."""
        if command != _GET_REPORT0 or len(request) != 1088:
            raise OSError(errno.ENOTTY, "")
        of_td = self.body[_QUOTE_HEADER:]
        report = bytes((0x81, 0, 0, 0)).ljust(128, b"\0") + request[:64]
        # TDINFO: attributes, XFAM, MRTD and MRCONFIGID lie in the quote in the same order.
        report = report.ljust(512, b"\0") + of_td[120:232]
        return request[:64] + report.ljust(1024, b"\0")

    def _signature(self, body: bytes, algorithm: hashes.HashAlgorithm) -> tuple[int, int]:
        return decode_dss_signature(self._key.sign(body, ec.ECDSA(algorithm)))


@dataclass
class Entry:
    """One folder of `tsm/report`."""

    chip: Chip
    inblob: bytes = b""
    generation: int = 0
    known: dict[int, bytes] = field(default_factory=dict)

    def folder(self) -> Folder:
        """Its files; which there are depends on the driver."""
        files: dict[str, File | Folder] = {
            "generation": File(read=self._generation),
            "provider": File(read=f"{self.chip.provider}\n".encode),
            "inblob": File(written=self.write),
            "outblob": File(read=self.outblob),
        }
        if self.chip.provider == "sev_guest":
            files["auxblob"] = File(read=lambda: self.outblob() and self.chip.auxblob)
        return Folder(entries=files)

    def _generation(self) -> bytes:
        return b"%d\n" % self.generation

    def write(self, data: bytes) -> None:
        """Each write counts."""
        if len(data) > _INBLOB_MOST:
            raise OSError(errno.EINVAL, "")
        self.inblob, self.generation = data, self.generation + 1

    def outblob(self) -> bytes:
        """Made at the first reading after a write."""
        if not self.inblob:
            raise OSError(errno.EINVAL, "")
        if self.generation not in self.known:
            self.known[self.generation] = self.chip.report(self.inblob)
            if (
                self.chip.meddled and self.generation == 1
            ):  # Another process of the guest writes to this entry at this moment.
                self.write(bytes(64))
        return self.known.get(self.generation) or self.chip.report(self.inblob)


def tree(chip: Chip) -> Folder:
    """What is mounted."""
    report = Folder(made=lambda: Entry(chip).folder())
    entries: dict[str, File | Folder] = {"tsm": Folder(entries={"report": report})}
    if chip.provider == "tdx_guest":
        entries["tdx_guest"] = File(read=lambda: b"", ioctl=chip.td_report)
    return Folder(entries=entries)


def main() -> None:
    """Mount, then serve in the background."""
    made = Tree(tree(Chip(json.loads(Path(sys.argv[1]).read_text()))))
    device = made.mount(Path(sys.argv[2]))
    if os.fork():
        return
    os.setsid()
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    made.serve(device)


if __name__ == "__main__":
    main()
