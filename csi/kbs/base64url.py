"""base64url without padding, as JOSE writes binary values; the strict inverse refuses every other spelling."""

import base64
import binascii
import re

from csi.core.errors import InvalidInput

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)


def encode(data: bytes) -> str:
    """Bytes to text, no padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str, field: str) -> bytes:
    """Text to bytes. One value has one spelling: padding, other alphabets and stray low bits are `InvalidInput`."""
    if not _ALPHABET.fullmatch(text):
        raise InvalidInput(field, "not base64url without padding")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(field, "not base64url without padding") from error
    if encode(data) != text:
        raise InvalidInput(field, "not the canonical base64url of any value")
    return data
