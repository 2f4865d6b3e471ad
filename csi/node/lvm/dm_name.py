"""The kernel's name of an LV's device: group and volume joined by `-`, hyphens inside each doubled (lvm2's own rule)."""

_HYPHEN = "\0"


def encode(vg: str, lv: str) -> str:
    """The device-mapper name of an LV."""
    return f"{vg.replace('-', '--')}-{lv.replace('-', '--')}"


def decode(name: str) -> tuple[str, str] | None:
    """Group and LV of a device-mapper name; None for a name that is not a visible LV's."""
    parts = name.replace("--", _HYPHEN).split("-")
    if len(parts) != 2 or not all(parts):
        return None
    vg, lv = (part.replace(_HYPHEN, "-") for part in parts)
    return vg, lv
