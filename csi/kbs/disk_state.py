"""What a disk's newest state record says, as one line that a guest prints and an operator gives to the broker.

`generation=4,nonce=…,epoch=…,header=…,payload=…`. The guest prints it only of a record whose MAC it has verified.
"""

import re
from dataclasses import dataclass

from csi.core.errors import InvalidInput
from csi.kbs import strict_json
from csi.kbs.register import Announcement, PayloadBytes, Sha256

_TEXT = re.compile(
    r"generation=(?P<generation>[1-9][0-9]{0,18}),nonce=(?P<nonce>[0-9a-f]{64}),epoch=(?P<epoch>[0-9a-f]{32}),"
    r"header=(?P<header_sha256>[0-9a-f]{64}),payload=(?P<payload_bytes>[1-9][0-9]{0,18})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskState:
    """A state of a formatted volume."""

    announcement: Announcement
    header_sha256: Sha256
    payload_bytes: PayloadBytes

    def __str__(self) -> str:
        """The line."""
        of = self.announcement
        return (
            f"generation={of.generation},nonce={of.nonce},epoch={of.epoch},"
            f"header={self.header_sha256},payload={self.payload_bytes}"
        )


def parse(text: str, field: str) -> DiskState:
    """The inverse of `str`. Raises `InvalidInput` for anything else; `field` names where the text is from."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InvalidInput(field, f"{text[:200]!r} is not generation=…,nonce=…,epoch=…,header=…,payload=… of a guest")
    members = found.groupdict()
    state = {
        "announcement": {
            "generation": int(members["generation"]),
            "nonce": members["nonce"],
            "epoch": members["epoch"],
        },
        "header_sha256": members["header_sha256"],
        "payload_bytes": int(members["payload_bytes"]),
    }
    return strict_json.convert(state, DiskState, field)
