"""What a guest uses a volume as: the claim of its pod, by the names that its measured policy gives.

The names are Kubernetes' (namespace, and claim in it). The guest's policy says them for each rule, and the broker reads
them from the same measured text, so that the host, which chooses volume ids, can't choose these.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import msgspec

from csi.core.errors import InvalidInput
from csi.kbs import init_data, strict_json

POLICY_ENTRY = "sealed-local.toml"
"""The entry of init-data that holds the guest's policy."""

KubernetesName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimName:
    """Names that are given, or None. A claim's name says something in its namespace only."""

    namespace: KubernetesName | None = None
    claim: KubernetesName | None = None

    def __post_init__(self) -> None:
        """Refuse a claim of no namespace; inside of a decoder that becomes an error with the place."""
        if self.claim is not None and self.namespace is None:
            raise ValueError("a claim needs its namespace, too")


UNNAMED = ClaimName()


class _Rule(msgspec.Struct, frozen=True):
    namespace: KubernetesName | None = None
    claim: KubernetesName | None = None


class _Policy(msgspec.Struct, frozen=True):
    volume: list[_Rule] = []


@lru_cache(maxsize=init_data.KEPT_TEXTS)
def named_in(measured: str) -> frozenset[ClaimName]:
    """Every name that the rules of a measured init-data text give to their volumes.

    Empty for a text without a policy of ours, or with one that can't be read: a guest with that opens nothing.
    """
    try:
        text = init_data.parse(measured).files.get(POLICY_ENTRY, "")
        policy = strict_json.convert(init_data.read_toml(text, POLICY_ENTRY), _Policy, POLICY_ENTRY)
        return frozenset(ClaimName(namespace=rule.namespace, claim=rule.claim) for rule in policy.volume) - {UNNAMED}
    except (InvalidInput, ValueError):
        return frozenset()
