"""Ask a broker that has resources alone for a tenant's root, and derive a volume's keys from it."""

from typing import Protocol

from csi.core.errors import NotFound
from csi.core.secret import Secret
from csi.guest.derived import keys
from csi.guest.derived.keys import DerivedKeys
from csi.kbs.claim_name import ClaimName


class Resources(Protocol):
    """A broker's resources."""

    def get_resource(self, uri: str) -> Secret:
        """The bytes of a resource. Raises `NotFound` and what else a broker answers."""
        ...


def ask(resources: Resources, root: str, volume_id: str, used_as: ClaimName) -> DerivedKeys:
    """The keys of a volume. Raises `NotFound` for a root that is not there, `Refused` for one that is too short, and what
    the broker answers.
    """
    try:
        secret = resources.get_resource(root)
    except NotFound as error:
        raise NotFound(
            f"{error}. The policy's broker.root is {root}, and volume {volume_id} can't be opened without it. If it was "
            "there, put the same bytes back: others open nothing"
        ) from error
    return keys.derive(secret, volume_id, used_as)
