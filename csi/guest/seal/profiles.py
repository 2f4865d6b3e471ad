"""What a profile promises, and the refusal of a volume that is not sealed.

The rest of what a profile means stands where it is used, each matched to the end: the words for cryptsetup, the kernel's
table, the header's JSON, the number in a state record, what a policy may name, and the room (`csi.core.sealed`). A new
profile has to be decided at each of them before the types are right.
"""

from typing import assert_never

from csi.core.errors import Refused
from csi.core.sealed import Freshness, Profile


def freshness(profile: Profile) -> Freshness:
    """How much of an opened volume is known to be the newest."""
    match profile:
        case Profile.XTS:
            return Freshness.HEAD
        case Profile.NONE:
            raise unsealed()
        case _:
            assert_never(profile)


def unsealed() -> Refused:
    """The error for profile `none`: there is nothing to unlock, and this program has no path without encryption."""
    return Refused(f"a volume of profile {Profile.NONE} is not sealed; a guest has no key for it and does not open it")
