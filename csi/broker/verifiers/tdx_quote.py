"""The frame of a TDX quote, versions 4 and 5: every length has to be exact, so that no byte is outside what is verified.

What is inside the frame is verified by `dcap-qvl`, which reads lengths leniently and ignores what it does not need: bytes
after the quote, the root certificate, line ends. A reader that lets such bytes pass lets evidence differ unnoticed.
"""

import struct
from dataclasses import dataclass
from typing import Final

from csi.broker.verifiers.intel_chain import IntelRoot, check_pem_chain
from csi.core.errors import InvalidInput

_FIELD: Final = "TDX quote"
_HEADER: Final = struct.Struct("<HHI")
_HEADER_BYTES: Final = 48
_TDX: Final = 0x81
_ECDSA_P256: Final = 2
_BODY_V4_BYTES: Final = 584
_BODIES_V5: Final = {2: 584, 3: 648, 4: 885}
"""By type of the body: TD report 1.0, 1.5, and 1.5 with identity. Type 1 is SGX's."""
_ATTRIBUTES_AT: Final = 120
_SIGNATURE_AND_KEY_BYTES: Final = 128
_QE_REPORT_AND_SIGNATURE_BYTES: Final = 448
_NESTED_CERTIFICATION, _PCK_CHAIN = 6, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFrame:
    """Where the TD report is, and the exact bytes of the quote without padding after it."""

    quote: bytes
    attributes: bytes


class _Reader:
    """Takes bytes from the front; raises `InvalidInput` when there are too few."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def take(self, size: int) -> bytes:
        if size > len(self._rest):
            raise InvalidInput(_FIELD, "ends too early")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> bytes:
        return self.take(len(self._rest))


def parse(raw: bytes, root: IntelRoot) -> QuoteFrame:
    """Check the frame; raises `InvalidInput`. Zeros after the quote are padding of the host's buffer, and are cut off."""
    reader = _Reader(raw)
    version, key_type, tee_type = _HEADER.unpack(reader.take(_HEADER.size))
    reader.take(_HEADER_BYTES - _HEADER.size)
    if version not in (4, 5):
        raise InvalidInput(f"{_FIELD}.version", f"{version}; this broker reads 4 and 5")
    if (key_type, tee_type) != (_ECDSA_P256, _TDX):
        raise InvalidInput(_FIELD, f"key type {key_type} and TEE type {tee_type:#x}, not ECDSA P-256 and TDX")
    body = reader.take(_BODY_V4_BYTES if version == 4 else _body_size(reader))
    size = reader.number(4)
    _check_authentication(reader.take(size), root)
    padding = reader.rest()
    if any(padding):
        raise InvalidInput(_FIELD, "bytes after its end are not zero")
    return QuoteFrame(quote=raw[: len(raw) - len(padding)], attributes=body[_ATTRIBUTES_AT : _ATTRIBUTES_AT + 8])


def _body_size(reader: _Reader) -> int:
    kind, size = reader.number(2), reader.number(4)
    if _BODIES_V5.get(kind) != size:
        raise InvalidInput(f"{_FIELD}.body", f"type {kind} with {size} bytes is no TD report that this broker knows")
    return size


def _check_authentication(data: bytes, root: IntelRoot) -> None:
    """Signature and key, then what certifies the key: the quoting enclave's report and the chain of its own key."""
    reader = _Reader(data)
    reader.take(_SIGNATURE_AND_KEY_BYTES)
    kind, size = reader.number(2), reader.number(4)
    certification = _Reader(reader.take(size))
    if kind != _NESTED_CERTIFICATION or reader.rest():
        raise InvalidInput(f"{_FIELD}.certification", f"type {kind}, or bytes after it")
    certification.take(_QE_REPORT_AND_SIGNATURE_BYTES)
    certification.take(certification.number(2))
    kind, size = certification.number(2), certification.number(4)
    chain = certification.take(size)
    if kind != _PCK_CHAIN or certification.rest():
        raise InvalidInput(f"{_FIELD}.certificates", f"type {kind}, not a PCK chain, or bytes after it")
    check_pem_chain(chain.removesuffix(b"\0").decode("ascii", errors="replace"), 3, f"{_FIELD}.certificates", root)
