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
        mine = self.used_as
        if mine.namespace not in (None, used_as.namespace) or mine.claim not in (None, used_as.claim):
            return False
        return self.workload in workloads

    def __str__(self) -> str:
        """For people."""
        names = [name for name in (self.used_as.namespace, self.used_as.claim) if name is not None]
        return f"{self.workload} ({'/'.join(names)})" if names else self.workload
