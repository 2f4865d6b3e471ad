"""Whose a volume is. A pattern of the policy that covers its name is not enough: see `Owner.admits`."""

from collections.abc import Iterable
from dataclasses import dataclass

from csi.kbs.claim_name import UNNAMED, ClaimName


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A workload of the policy, and the claim for which alone it has the volume, as far as one is named."""

    workload: str
    used_as: ClaimName = UNNAMED

    def admits(self, workloads: Iterable[str], used_as: ClaimName) -> bool:
        """Whether a guest of these workloads that uses the volume as this claim is the owner. A name that the owner has
        not is not compared.
        """
        of_owner = (self.used_as.namespace, self.used_as.claim)
        of_guest = (used_as.namespace, used_as.claim)
        fits = all(mine in (None, theirs) for mine, theirs in zip(of_owner, of_guest, strict=True))
        return fits and self.workload in workloads

    def __str__(self) -> str:
        """For people."""
        names = [name for name in (self.used_as.namespace, self.used_as.claim) if name is not None]
        return f"{self.workload} ({'/'.join(names)})" if names else self.workload
