"""How several fields become the one input of a hash, of HKDF or of a cipher's bound data."""


def framed(*fields: bytes) -> bytes:
    """Each field behind its length in four bytes, big-endian, so that no two lists of fields give the same bytes.

    Frozen: keys, measurements and stored secrets depend on every byte of it.
    """
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
