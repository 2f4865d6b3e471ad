"""What a volume holds: closed, so that whoever decides by it is asked for every case by the type checker."""

from dataclasses import dataclass
from typing import assert_never

from csi.core.filesystem import Filesystem
from csi.core.sealed import Profile

_RAW = "block"
_SEALED = "sealed"


@dataclass(frozen=True, slots=True)
class HoldsFilesystem:
    """A filesystem that the node made."""

    filesystem: Filesystem


@dataclass(frozen=True, slots=True)
class Raw:
    """Whatever its pod writes to the raw device."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """Ciphertext of a guest, sealed by this profile; the node never looks inside."""

    profile: Profile


Content = HoldsFilesystem | Raw | Sealed


def word(content: Content) -> str:
    """The word for it in the volume's tag and in messages: the filesystem's name, `block` or `sealed`."""
    match content:
        case HoldsFilesystem(filesystem):
            return filesystem.value
        case Raw():
            return _RAW
        case Sealed():
            return _SEALED
        case _:
            assert_never(content)


def read(text: str, profile: Profile) -> Content:
    """The content that `word` wrote for a volume of this profile. Raises `ValueError` where the two contradict."""
    if (text == _SEALED) != profile.is_sealed:
        raise ValueError(f"a volume of profile {profile} does not hold {text}")
    if text == _SEALED:
        return Sealed(profile)
    return Raw() if text == _RAW else HoldsFilesystem(Filesystem(text))
