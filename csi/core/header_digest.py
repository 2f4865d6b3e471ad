"""The digest of a sealed volume's header copy, which its state record and the register name. Pure."""

import hashlib

from csi.core import spans
from csi.core.sealed import HEADER_BYTES, HEADER_PARTS_BYTES


def header_digest(header: bytes) -> bytes:
    """SHA-256 of the parts of a header. They may be followed by the zeroes of a whole copy, or not.

    Empty, and so no copy's digest, for anything else.
    """
    if len(header) not in (HEADER_PARTS_BYTES, HEADER_BYTES):
        return b""
    view = memoryview(header)
    if not spans.is_zero(view[HEADER_PARTS_BYTES:]):
        return b""
    return hashlib.sha256(view[:HEADER_PARTS_BYTES]).digest()
