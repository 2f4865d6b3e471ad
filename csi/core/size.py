"""Sizes: bytes are plain integers named `*_bytes`; this module holds units, rounding and words for humans."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

SECTOR_BYTES = 512  # device-mapper tables and cryptsetup's --offset count these, whatever the disk's own block size


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step


def human(size_bytes: int) -> str:
    """A size as a person would say it, exact where it is a whole number of a binary unit: `10 GiB`, `1.50 MiB`."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit:
            whole, rest = divmod(size_bytes, unit)
            return f"{whole} {name}" if rest == 0 else f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes} bytes"
