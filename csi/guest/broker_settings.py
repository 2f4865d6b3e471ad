"""How a guest reaches its broker: values of the measured policy. Holds no connection and no key."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Everything a guest needs to know about its broker; all of it is measured, none of it comes from the host."""

    url: str
    """`https://host[:port]`, without the protocol's `/kbs/v0`."""
    ca_pem: str
    """The only certificate authority that is trusted for this broker; the system's trust store is not used."""
    init_data: str
    """The whole init-data text of this guest, byte for byte as it was measured; empty when there is none."""
    allow_sample: bool
    """Whether the development-only `sample` TEE, which proves nothing, may be used."""
    attestation_agent: bool = False
    """Whether evidence may come from Confidential Containers' attestation-agent where the kernel shows no configfs-tsm."""
    timeout_seconds: float = 30.0
    """Bound of one HTTP exchange."""
    root: str | None = None
    """`kbs:///REPOSITORY/TYPE/TAG`: the resource that volumes' keys are derived from, at a broker that has resources alone
    (Trustee). None for a broker that keeps a register of volumes."""
